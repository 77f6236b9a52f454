// A caller that goes away, in each phase of its job: nothing is left of it.

#include "tests/prefill_worker/prefill_fixture.h"

namespace cachalot {
namespace {

using testing::Eventually;

class PrefillCancelTest : public testing::PrefillFixture {
 protected:
  SequenceState OracleState() const { return m_.State(m_.oracle.input_ids); }
  bool EventuallyQueued(int jobs) {
    return Eventually([&] { return Metric("cachalot_prefill_queue_length") == jobs; });
  }
};

TEST_F(PrefillCancelTest, WhileQueued) {
  Serve();
  m_.experts.Allow(0);
  auto first = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(1));
  auto second = Call(OracleState());
  ASSERT_TRUE(second->Next()->has_progress());
  second->Cancel();
  EXPECT_EQ(second->Finish().code(), StatusCode::kCancelled);
  ASSERT_TRUE(EventuallyQueued(1));  // the step thread has the message now, though it is busy
  m_.experts.AllowAll();
  EXPECT_TRUE(first->Finish().ok());
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_EQ(m_.experts.chunks(), 5);  // the first one's: nothing was computed for the second
}

TEST_F(PrefillCancelTest, WhileComputed) {
  Serve();
  m_.experts.Allow(1);
  auto call = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(2));
  call->Cancel();
  EXPECT_EQ(call->Finish().code(), StatusCode::kCancelled);
  ASSERT_TRUE(EventuallyQueued(0));
  EXPECT_TRUE(Eventually([&] { return decode_.open == 0; }));
  m_.experts.AllowAll();
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_EQ(m_.experts.chunks(), 2);
  EXPECT_EQ(decode_.commits, 0);
}

TEST_F(PrefillCancelTest, WhilePushing) {
  options_.service.push.window_bytes = 1;
  Serve();
  decode_.Behave(Manner::kDoNotRead);
  // More than what fits into the windows of a stream that nobody reads: rows are left in the KV.
  auto call = Call(m_.State(m_.Prompt(8000, 1)));
  const auto event = call->NextNews();
  ASSERT_TRUE(event && event->has_first_token());
  EXPECT_GT(server_->pools().used_blocks(), 0);
  call->Cancel();
  EXPECT_EQ(call->Finish().code(), StatusCode::kCancelled);
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_EQ(decode_.commits, 0);
}

TEST_F(PrefillCancelTest, WhileWaitingForTheVerdict) {
  Serve();
  decode_.Behave(Manner::kHoldVerdict);
  auto call = Call(OracleState());
  const auto event = call->NextNews();
  ASSERT_TRUE(event && event->has_first_token());
  ASSERT_TRUE(Eventually([&] { return decode_.commits == 1; }));
  call->Cancel();
  EXPECT_EQ(call->Finish().code(), StatusCode::kCancelled);
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_EQ(decode_.cancelled, 1);
  // The lease's owner judges by its own rules what such a commit is worth; the worker serves on.
  decode_.Behave(Manner::kAnswer);
  EXPECT_TRUE(Call(OracleState())->Finish().ok());
}

}  // namespace
}  // namespace cachalot
