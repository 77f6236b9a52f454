// Requests that end early: cancel, deadline, a client that is gone, no worker, the end of the loop. Whatever
// the step, nothing stays open (FlowTest::TearDown looks).

#include <gmock/gmock.h>

#include "tests/router/flow_harness.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

/// The waits of a request, by the numbers of docs/architecture.md.
enum class Step {
  k3SeekDecode,
  k4Lease,
  k4Started,
  k5SeekPrefill,
  k5FirstToken,
  k6NextToken,
  k8Tokens,
  kFailoverSeek,
  kFailoverLease,
};
constexpr Step kSteps[] = {Step::k3SeekDecode,  Step::k4Lease,       Step::k4Started,
                           Step::k5SeekPrefill, Step::k5FirstToken,  Step::k6NextToken,
                           Step::k8Tokens,      Step::kFailoverSeek, Step::kFailoverLease};

const char* Name(Step step) {
  switch (step) {
    case Step::k3SeekDecode:
      return "SeekDecode";
    case Step::k4Lease:
      return "Lease";
    case Step::k4Started:
      return "Started";
    case Step::k5SeekPrefill:
      return "SeekPrefill";
    case Step::k5FirstToken:
      return "FirstToken";
    case Step::k6NextToken:
      return "NextToken";
    case Step::k8Tokens:
      return "Tokens";
    case Step::kFailoverSeek:
      return "FailoverSeek";
    case Step::kFailoverLease:
      return "FailoverLease";
  }
  return "?";
}

/// What a deadline there says; empty: as any.
const char* WaitedFor(Step step) {
  switch (step) {
    case Step::k3SeekDecode:
      return "decode0: away";
    case Step::k4Lease:
      return "a lease";
    case Step::k5SeekPrefill:
      return "prefill0: away";
    case Step::k6NextToken:
      return "the next token";
    default:
      return "";
  }
}

class EndTest : public FlowTest, public ::testing::WithParamInterface<Step> {
 protected:
  /// Runs to the step, where nothing more comes from the workers or the client.
  void RunTo(Step step, TimePoint deadline) {
    context_.options.placement_wait = context_.options.resume_wait = std::chrono::hours(1);
    context_.options.lease_wait = std::chrono::hours(1);
    if (step == Step::k3SeekDecode) decode().status = Unavailable("away");
    if (step == Step::k5SeekPrefill) prefill().status = Unavailable("away");
    if (step == Step::k4Started) client_.go_on.Reset();
    Run(deadline);
    if (step <= Step::k4Lease) return;
    lease().Grant();
    Settle();
    if (step <= Step::k5FirstToken) return;
    call().FirstToken();
    call().Commit();
    lease().Tokens(1, 2);
    Settle();
    if (step == Step::k8Tokens) {
      client_.go_on.Reset();
      lease().Tokens(2, 3);
    }
    if (step == Step::kFailoverSeek) decode().status = Unavailable("away");
    if (step >= Step::kFailoverSeek) lease().Fail(Unavailable("died"));
    Settle();
  }
};

TEST_P(EndTest, CancelReleasesEverything) {
  RunTo(GetParam(), TimePoint::max());
  EXPECT_FALSE(done());
  cancel_.Cancel();
  Settle();
  // A write to a client that is gone fails.
  client_.refuses_start = client_.refuses_tokens = true;
  client_.go_on.Set();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_EQ(open_calls(), 0);
}

TEST_P(EndTest, CancelThatComesDuringAWriteEndsTheRequestBehindIt) {
  RunTo(GetParam(), TimePoint::max());
  cancel_.Cancel();
  client_.go_on.Set();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
}

TEST_P(EndTest, DeadlineEndsEveryWait) {
  const TimePoint deadline = loop_.Now() + std::chrono::milliseconds(400);
  RunTo(GetParam(), deadline);
  if (client_.busy) {  // the writes to the client have no deadline of their own: gRPC ends them with the call
    while (loop_.Now() < deadline) loop_.PollOnce(deadline);
    client_.go_on.Set();
  }
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(StatusMessage(status), HasSubstr("deadline passed while waiting for"));
  EXPECT_THAT(StatusMessage(status), HasSubstr(WaitedFor(GetParam())));
}

TEST_P(EndTest, TheEndOfTheLoopEndsTheRequest) {
  RunTo(GetParam(), TimePoint::max());
  loop_.Shutdown(Duration::zero());
  while (loop_.PollOnce(TimePoint::max()) != rpc::Loop::Poll::kStopped) {
  }
  ASSERT_TRUE(done());
  EXPECT_EQ(result_->status().code(), StatusCode::kUnavailable) << result_->status();
}

INSTANTIATE_TEST_SUITE_P(Steps, EndTest, ::testing::ValuesIn(kSteps),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST_F(FlowTest, CancelledBeforeItBegan) {
  cancel_.Cancel();
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_TRUE(decode().leases.empty());
}

TEST_F(FlowTest, CancelledTogetherWithTheLastToken) {
  RunToStreaming();
  lease().Tokens(2, 3, FinishReason::kStop);
  cancel_.Cancel();
  EXPECT_TRUE(Outcome().ok());
}

TEST_F(FlowTest, CancelledTogetherWithTheDecodeWorkersDeath) {
  AddDecode();
  RunToStreaming();
  lease().Fail(Unavailable("died"));
  cancel_.Cancel();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_TRUE(decode(1).leases.empty());
}

TEST_F(FlowTest, TheClientRefusesTheStart) {
  client_.refuses_start = true;
  decode().on_open = [](auto& lease) { lease.Grant(); };
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_TRUE(prefill().calls.empty());
}

TEST_F(FlowTest, TheClientRefusesTokens) {
  RunToStreaming();
  client_.refuses_tokens = true;
  lease().Tokens(2, 3);
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
}

TEST_F(FlowTest, TheClientRefusesTheLastTokens) {
  RunToStreaming();
  client_.refuses_tokens = true;
  lease().Tokens(2, 3, FinishReason::kStop);
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
}

TEST_F(FlowTest, TheClientRefusesTheTokensOfADeadPair) {
  AddDecode();
  RunToStreaming();
  client_.refuses_tokens = true;
  lease().Tokens(2, 3);
  lease().Fail(Unavailable("died"));
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_TRUE(decode(1).leases.empty());
}

TEST_F(FlowTest, TheClientRefusesLogits) {
  for (const bool prompt : {true, false}) {
    client_.refuses_logits = true;
    state_.want_logits = true;
    client_.started = 0;
    result_.reset();
    Run();
    lease().Grant();
    Settle();
    if (prompt) {
      call().Logits(0, {1.f});
    } else {
      call().FirstToken();
      lease().Tokens(1, 2);
    }
    EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  }
}

TEST_F(FlowTest, NoDecodeWorkerIsUsable) {
  AddDecode();
  decode(0).status = Unavailable("connection refused");
  decode(1).status = FailedPrecondition("weights differ");
  context_.options.placement_wait = std::chrono::milliseconds(30);
  Run();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status),
              HasSubstr("no worker is usable: decode0: connection refused; decode1: weights differ"));
  EXPECT_EQ(client_.started, 0);
}

TEST_F(FlowTest, TheWaitForWorkersIsNotRepeated) {
  context_.options.placement_wait = context_.options.resume_wait = Duration::zero();
  decode().status = Unavailable("away");
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kUnavailable);
  EXPECT_EQ(decode().looks, 1);

  decode().status = OkStatus();
  prefill().status = Unavailable("away");
  decode().on_open = [](auto& lease) { lease.Grant(); };
  result_.reset();
  Run();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("prefill0: away"));
  EXPECT_EQ(prefill().looks, 1);
  EXPECT_EQ(decode().leases.size(), 1u);
}

TEST_F(FlowTest, AWorkerThatComesBackInTimeIsTaken) {
  decode().status = Unavailable("restarting");
  context_.options.placement_wait = std::chrono::hours(1);
  decode().on_open = [](auto& lease) { lease.Grant(); };
  prefill().on_start = [](auto& call) { call.FirstToken(FinishReason::kLength); };
  Run();
  EXPECT_FALSE(done());
  decode().status = OkStatus();
  EXPECT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(1));
}

}  // namespace
}  // namespace cachalot::testing
