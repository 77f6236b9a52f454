// The only worker of a kind dies and comes back: a request that its client has seen accepted goes on.

#include <gmock/gmock.h>

#include "tests/router/flow_harness.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

class RestartTest : public FlowTest {
 protected:
  RestartTest() {
    context_.options.placement_wait = Duration::zero();  // for new requests
    context_.options.max_pairs = 2;
    context_.options.max_prefill_attempts = 2;
  }
  void DecodeDies() {
    decode().status = Unavailable("connection refused");
    lease().Fail(Unavailable("its session broke"));
    Settle();
  }
  void RunToPrefill() {
    Run();
    lease().Grant();
    Settle();
    ASSERT_EQ(prefill().calls.size(), 1u);
  }
};

TEST_F(RestartTest, OfTheDecodeWorkerWhichRefusesAtFirst) {
  RunToStreaming();
  DecodeDies();
  EXPECT_FALSE(done());
  std::vector<TimePoint> asked;
  decode().on_open = [&](auto& lease) {
    asked.push_back(loop_.Now());
    if (asked.size() <= 4) return lease.Fail(Unavailable("starting"));
    lease.Grant();
  };
  decode().status = OkStatus();
  ASSERT_TRUE(Until([&] { return prefill().calls.size() == 2; }));
  ASSERT_EQ(asked.size(), 5u);
  EXPECT_GE(asked[1] - asked[0], std::chrono::milliseconds(20));
  EXPECT_GE(asked[4] - asked[3], std::chrono::milliseconds(160));
  EXPECT_EQ(lease().state.emitted, Expected(2));
  EXPECT_EQ(context_.counters.decode_failovers, 1);
  FinishOutput(2, 6);
}

TEST_F(RestartTest, OfTheDecodeWorkerInTheMiddleOfAPrefill) {
  RunToPrefill();
  DecodeDies();
  EXPECT_FALSE(call().open);
  EXPECT_FALSE(done());
  decode().status = OkStatus();
  ASSERT_TRUE(Until([&] { return decode().leases.size() == 2; }));
  lease().Grant();
  Settle();
  FinishOutput(0, 4);
}

TEST_F(RestartTest, OfADecodeWorkerThatIsWaitedForInTheLine) {
  RunToStreaming();
  decode().reported = {1, 0, 0, 1};
  lease().Preempt(2);
  Settle();
  ASSERT_EQ(context_.line.size(), 1u);
  decode().status = Unavailable("connection refused");
  const int looks = decode().looks;
  ASSERT_TRUE(Until([&] { return decode().looks > looks + 3; }));
  EXPECT_FALSE(done());
  int refusals = 4;
  decode().on_open = [&](auto& lease) { refusals-- > 0 ? lease.Fail(Unavailable("starting")) : lease.Grant(); };
  decode().status = OkStatus();
  decode().reported = kIdle;
  ASSERT_TRUE(Until([&] { return prefill().calls.size() == 2; }));
  FinishOutput(2, 4);
}

TEST_F(RestartTest, IsNotWaitedForByANewRequest) {
  decode().on_open = [](auto& lease) { lease.Fail(Unavailable("starting")); };
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kUnavailable);
  EXPECT_EQ(decode().leases.size(), 2u);
}

TEST_F(RestartTest, ThatNeverComesEndsTheRequest) {
  context_.options.resume_wait = std::chrono::milliseconds(50);
  RunToStreaming();
  const TimePoint begin = loop_.Now();
  DecodeDies();
  const Status status = Outcome();
  EXPECT_GE(loop_.Now() - begin, context_.options.resume_wait);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("decode0: connection refused"));
  EXPECT_EQ(client_.tokens(), Expected(2));
}

TEST_F(RestartTest, ThatNeverEndsEndsTheRequest) {
  context_.options.resume_wait = std::chrono::milliseconds(50);
  RunToStreaming();
  decode().on_open = [](auto& lease) { lease.Fail(Unavailable("starting")); };
  lease().Fail(Unavailable("its session broke"));
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(StatusMessage(status), "starting");
}

TEST_F(RestartTest, WorkersThatTakeItAndDieAreNotTriedForEver) {
  RunToStreaming();
  decode().on_open = [](auto& lease) {
    lease.Grant();
    lease.Fail(Unavailable("died of it"));
  };
  lease().Fail(Unavailable("died of it"));
  EXPECT_EQ(Outcome().code(), StatusCode::kUnavailable);
  EXPECT_EQ(decode().leases.size(), 2u);
}

TEST_F(RestartTest, OfThePrefillWorkerWhichRefusesAtFirst) {
  context_.options.max_pairs = 1;
  RunToPrefill();
  prefill().status = Unavailable("connection refused");
  call().Fail(Unavailable("the stream broke"));
  Settle();
  EXPECT_TRUE(lease().open);
  int refusals = 4;
  prefill().on_start = [&](auto& call) {
    if (refusals-- > 0) call.Fail(Unavailable("starting"), /*untaken=*/true);
  };
  prefill().status = OkStatus();
  ASSERT_TRUE(Until([&] { return prefill().calls.size() == 6; }));
  EXPECT_EQ(call().options.attempt, 6u);
  EXPECT_EQ(decode().leases.size(), 1u);
  FinishOutput(0, 3);
}

TEST_F(RestartTest, OfThePrefillWorkerThatNeverEndsEndsTheRequest) {
  context_.options.max_pairs = 1;
  context_.options.resume_wait = std::chrono::milliseconds(50);
  decode().on_open = [](auto& lease) { lease.Grant(); };
  prefill().on_start = [](auto& call) { call.Fail(Unavailable("starting"), true); };
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kUnavailable);
  EXPECT_EQ(decode().leases.size(), 1u);
}

}  // namespace
}  // namespace cachalot::testing
