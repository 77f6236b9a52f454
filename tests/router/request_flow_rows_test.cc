// Rows of the prompt for a client that does not take them.

#include <gmock/gmock.h>

#include "tests/router/flow_harness.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RowsTest : public FlowTest {
 protected:
  RowsTest() {
    state_.prompt = {1, 2, 3, 4, 5, 6};
    state_.params.prompt_logprobs = 0;
    context_.options.reader_patience = std::chrono::milliseconds(30);
  }
  /// Its prefill waits for the client, which reads no rows; others want KV if `wanted`.
  void RunToTheWait(bool wanted) {
    Run();
    lease().Grant();
    Settle();
    ASSERT_EQ(prefill().calls.size(), 1u);
    client_.go_on.Reset();
    Rows();
    call().waits_for_reader = true;
    decode().reported.kv_wanted = wanted;
    Settle();
    ASSERT_TRUE(client_.busy);
  }
  void Rows() {
    if (state_.want_logits) return call().Logits(0, {1.f});
    call().PromptRows(1, 2);
    call().PromptRows(3, 1);
  }
  /// For longer than the patience.
  void LetTimePass() {
    const TimePoint end = loop_.Now() + 10 * context_.options.reader_patience;
    ASSERT_TRUE(Until([&] { return loop_.Now() >= end; }));
  }
  bool GivenBack() {
    return Until([&] { return !lease().open; }) && !call().open;
  }
  /// The client reads again.
  void FinishOnTheNextPair() {
    client_.go_on.Set();
    ASSERT_TRUE(Until([&] { return decode().leases.size() == 2; }));
    lease().Grant();
    Settle();
    call().PromptRows(1, 5);
    Settle();
    Finish();
  }
  void Finish() {
    call().FirstToken();
    call().Commit();
    lease().Tokens(1, 3, FinishReason::kStop);
    const Status status = Outcome();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(client_.tokens(), Expected(3));
    EXPECT_THAT(client_.prompt_rows, ElementsAre(1, 2, 3, 4, 5));
    EXPECT_EQ(client_.started, 1);
  }
};

TEST_F(RowsTest, KeepTheirLeaseWhileNobodyNeedsIt) {
  RunToTheWait(false);
  LetTimePass();
  EXPECT_TRUE(lease().open);
  call().waits_for_reader = false;
  client_.go_on.Set();
  call().PromptRows(4, 2);
  Settle();
  Finish();
  EXPECT_EQ(context_.counters.preemptions, 0);
}

TEST_F(RowsTest, KeepTheirLeaseWhileTheirPrefillGoesOn) {
  RunToTheWait(true);
  call().waits_for_reader = false;
  LetTimePass();
  EXPECT_TRUE(lease().open) << "once it runs it is the decode worker's to preempt";
  client_.go_on.Set();
  call().PromptRows(4, 2);
  Settle();
  Finish();
}

TEST_F(RowsTest, GiveTheirKvToThoseWhoWaitForItAndGoOnWhenTheyAreRead) {
  RunToTheWait(true);
  const auto queue = call().queue;
  ASSERT_TRUE(GivenBack());
  EXPECT_EQ(queue->size(), 0u) << "nor do rows wait here";
  EXPECT_FALSE(done());
  EXPECT_EQ(context_.line.size(), 0u) << "it holds up nobody in the line";
  EXPECT_EQ(decode().leases.size(), 1u);
  client_.go_on.Set();
  ASSERT_TRUE(Until([&] { return decode().leases.size() == 2; }));
  EXPECT_THAT(client_.prompt_rows, ElementsAre(1, 2));
  lease().Grant();
  Settle();
  ASSERT_EQ(prefill().calls.size(), 2u);
  call().PromptRows(1, 3);  // computed again
  call().PromptRows(4, 2);
  Settle();
  Finish();
  EXPECT_EQ(context_.counters.preemptions, 1);
  EXPECT_EQ(context_.counters.decode_failovers + context_.counters.prefill_retries, 0);
}

TEST_F(RowsTest, GiveTheirKvToTheRoutersOwnLine) {
  RunToTheWait(false);
  {
    const ResumeLine::Place waits(&context_.line);
    ASSERT_TRUE(GivenBack());
  }
  FinishOnTheNextPair();
}

TEST_F(RowsTest, GiveTheirKvToThoseWhoWaitAtThePrefillWorker) {
  RunToTheWait(false);
  prefill().reported.kv_wanted = true;
  ASSERT_TRUE(GivenBack());
  prefill().reported.kv_wanted = false;
  FinishOnTheNextPair();
}

TEST_F(RowsTest, OfDebuggingRunsCannotBeResumed) {
  state_.want_logits = true;
  RunToTheWait(true);
  ASSERT_TRUE(GivenBack());
  client_.go_on.Set();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("the client took none of the prompt's rows for 0.03 s while"));
  EXPECT_THAT(StatusMessage(status), HasSubstr("while others waited for KV"));
  EXPECT_EQ(decode().leases.size(), 1u);
}

TEST_F(RowsTest, TheClientMayLeaveBehindThat) {
  RunToTheWait(true);
  cancel_.Cancel();  // what is queued behind the rows is forgotten, but not this
  ASSERT_TRUE(GivenBack());
  client_.go_on.Set();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_EQ(decode().leases.size(), 1u);
}

TEST_F(RowsTest, TheEndOfTheLoopEndsTheWait) {
  RunToTheWait(false);
  loop_.Shutdown(Duration::zero());
  while (loop_.PollOnce(loop_.Now() + std::chrono::seconds(1)) == rpc::Loop::Poll::kProgress) {
  }
  ASSERT_TRUE(done());
  EXPECT_EQ(open_calls(), 0);
}

}  // namespace
}  // namespace cachalot::testing
