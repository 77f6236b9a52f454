// The third way back: a decode worker preempts a request, which waits in the line for KV and goes on.

#include <gmock/gmock.h>

#include "tests/router/flow_harness.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Kind = FlowEvent::Kind;

class PreemptTest : public FlowTest {
 protected:
  /// The request opens again on worker 0, behind `emitted` tokens; then its prefill begins.
  void Reopens(size_t leases, int64_t emitted) {
    ASSERT_TRUE(Until([&] { return decode().leases.size() == leases; }));
    EXPECT_EQ(lease().state.emitted, Expected(emitted));
    EXPECT_EQ(lease().state.prompt, state_.prompt);
    for (size_t i = 0; i + 1 < leases; ++i) EXPECT_FALSE(decode().leases[i]->open);
    lease().Grant();
    Settle();
    ASSERT_EQ(prefill().calls.size(), leases);
    EXPECT_EQ(call().state.emitted, Expected(emitted));
    EXPECT_EQ(call().options.attempt, 1u);
  }
  void Finish(int64_t from, int64_t to, int64_t prefill_retries = 0) {
    FinishOutput(from, to);
    EXPECT_EQ(context_.counters.decode_failovers, 0);
    EXPECT_EQ(context_.counters.prefill_retries, prefill_retries);
    EXPECT_EQ(context_.line.size(), 0u);
    EXPECT_EQ(context_.running, 0);
  }
  void RunToPrefill() {
    Run();
    lease().Grant();
    Settle();
    ASSERT_EQ(prefill().calls.size(), 1u);
  }
  /// Prefill worker `full` refuses twice and takes it then; the other could never hold it.
  void GoesOnBesideOneTooSmall(size_t full) {
    AddPrefill();
    int asked = 0;
    decode().on_open = [](auto& lease) { lease.Grant(); };
    prefill(full).on_start = [&](auto& call) {
      if (++asked <= 2) call.Fail(ResourceExhausted("the queue is full"));
    };
    prefill(1 - full).on_start = [](auto& call) { call.Fail(OutOfRange("more than its KV")); };
    Run();
    ASSERT_TRUE(Until([&] { return asked == 3 || done(); }));
    ASSERT_EQ(asked, 3) << "an accepted request has ended: " << result_->status();
    call(full).FirstToken();
    call(full).Commit();
    lease().Tokens(1, 3, FinishReason::kStop);
    ASSERT_TRUE(Outcome().ok());
    EXPECT_EQ(client_.tokens(), Expected(3));
  }
  /// Worker 0 could never hold it; on worker 1 it has its first token.
  void BeginsOnTheLargeWorker() {
    AddDecode();
    decode(0).on_open = [](auto& lease) { lease.Fail(OutOfRange("too large for 0")); };
    Run();
    ASSERT_EQ(decode(1).leases.size(), 1u);
    FillLargeWorker();
  }
  void FillLargeWorker() {
    lease(1).Grant();
    Settle();
    call().FirstToken();
    call().Commit();
  }
  void EndsOnTheLargeWorker() {
    FillLargeWorker();
    lease(1).Tokens(2, 4, FinishReason::kStop);
    ASSERT_TRUE(Outcome().ok());
    EXPECT_EQ(client_.tokens(), Expected(4));
    EXPECT_EQ(decode(0).leases.size(), 1u);
  }
};

TEST_F(PreemptTest, BetweenTokens) {
  MetricsRegistry metrics;
  context_.preemptions = &metrics.AddCounter("preemptions", "");
  RunToStreaming();
  lease().Tokens(2, 5);
  lease().Preempt(5);  // with tokens before it that nobody has looked at yet
  Reopens(2, 5);
  EXPECT_EQ(client_.tokens(), Expected(5));
  Finish(5, 9);
  EXPECT_EQ(context_.counters.preemptions, 1);
  EXPECT_EQ(context_.preemptions->Value(), 1);
}

TEST_F(PreemptTest, BeforeTheFirstTokenWhichIsWaitedFor) {
  RunToPrefill();
  lease().Tokens(1, 3);  // on another connection than the first one, which they overtake
  lease().Preempt(3);
  Settle();
  EXPECT_EQ(decode().leases.size(), 1u);
  EXPECT_TRUE(client_.messages.empty());
  call().FirstToken();
  call().Commit();
  Reopens(2, 3);
  Finish(3, 6);
}

TEST_F(PreemptTest, BeforeAnyTokenOfTheDecodeWorker) {
  RunToPrefill();
  call().Commit();
  lease().Preempt(1);
  call().FirstToken();
  Reopens(2, 1);
  Finish(1, 4);
}

TEST_F(PreemptTest, BeforeTheFirstTokenWhichIsLostWithItsWorker) {
  context_.options.max_pairs = 1;
  RunToPrefill();
  lease().Tokens(1, 3);
  lease().Preempt(3);
  Settle();
  call().Fail(Unavailable("died"));
  Reopens(2, 0);  // tokens behind a missing one are computed again
  Finish(0, 4);
}

TEST_F(PreemptTest, BehindAnAttemptThatSeemedToFail) {
  AddPrefill().status = Unavailable("away");
  RunToPrefill();
  prefill(0).status = Unavailable("died");
  call().Fail(Unavailable("died"));  // and the flow waits for a prefill worker
  Settle();
  lease().Preempt(1);  // but it had committed
  Settle();
  prefill(0).status = OkStatus();
  Reopens(2, 0);
  Finish(0, 3, /*prefill_retries=*/1);
}

TEST_F(PreemptTest, BehindTheFinishItIsIgnored) {
  RunToStreaming();
  lease().Tokens(2, 4, FinishReason::kLength);
  lease().Preempt(4);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(4));
  EXPECT_EQ(decode().leases.size(), 1u);
  EXPECT_EQ(context_.counters.preemptions, 0);
}

TEST_F(PreemptTest, ManyTimesInARowCostsNoAttempt) {
  context_.options.max_pairs = 1;
  RunToStreaming();
  lease().Preempt(2);
  for (int64_t have = 2; have < 12; ++have) {
    Reopens(static_cast<size_t>(have), have);
    call().FirstToken();
    call().Commit();
    lease().Preempt(have + 1);
  }
  Reopens(12, 12);
  Finish(12, 14);
  EXPECT_EQ(context_.counters.preemptions, 11);
}

TEST_F(PreemptTest, TheLastTokenMayComeFromThePrefill) {
  RunToStreaming();
  lease().Preempt(2);
  Reopens(2, 2);
  call().FirstToken(FinishReason::kLength);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(3));
}

TEST_F(PreemptTest, AClientThatReadsNothingIsNotOpenedAgain) {
  RunToStreaming();
  client_.go_on.Reset();
  lease().Tokens(2, 4);
  Settle();
  ASSERT_TRUE(client_.busy);
  lease().Tokens(4, 6);
  lease().Preempt(6);
  Settle();
  EXPECT_EQ(decode().leases.size(), 1u);
  EXPECT_EQ(context_.line.size(), 0u) << "it holds up nobody in the line";
  client_.go_on.Set();
  Reopens(2, 6);
  EXPECT_EQ(client_.tokens(), Expected(6));
  Finish(6, 8);
}

TEST_F(PreemptTest, TheClientLeavesWithIt) {
  RunToStreaming();
  lease().Preempt(2);
  cancel_.Cancel();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_EQ(decode().leases.size(), 1u);
}

TEST_F(PreemptTest, TheClientLeavesWhileItWaits) {
  RunToStreaming();
  decode().reported = {1, 0, 0, 1};
  lease().Preempt(2);
  Settle();
  EXPECT_FALSE(lease().open);
  EXPECT_EQ(context_.line.size(), 1u);
  cancel_.Cancel();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
  EXPECT_EQ(context_.line.size(), 0u);
}

TEST_F(PreemptTest, TheClientLeavesBeforeTheFirstTokenOfAPreemptedOne) {
  RunToPrefill();
  lease().Preempt(1);
  Settle();
  cancel_.Cancel();
  EXPECT_EQ(Outcome().code(), StatusCode::kCancelled);
}

TEST_F(PreemptTest, ItsDeadlineEndsTheWaitAndSaysForWhat) {
  Run(loop_.Now() + std::chrono::milliseconds(300));
  lease().Grant();
  Settle();
  call().FirstToken();
  call().Commit();
  decode().reported = {1, 0, 0, 1};
  lease().Preempt(1);
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(StatusMessage(status), HasSubstr("KV"));
  EXPECT_EQ(decode().leases.size(), 1u);
}

// ---- the line

TEST_F(PreemptTest, ItWaitsUntilThereIsRoomForItAndItsNeighbours) {
  context_.options.resume_patience = std::chrono::hours(1);
  RunToStreaming();
  decode().reported = {3, 0, 128 * 4 - 1, 3};  // a token less than a block for each
  lease().Preempt(2);
  const int looks = decode().looks;
  ASSERT_TRUE(Until([&] { return decode().looks > looks + 4; }));
  EXPECT_EQ(decode().leases.size(), 1u);
  decode().reported.free_kv_tokens += 1;
  Reopens(2, 2);
  Finish(2, 4);
}

TEST_F(PreemptTest, ItGoesToTheWorkerWithRoom) {
  AddDecode();
  RunToStreaming();
  decode(0).reported = {1, 0, 0, 1};
  lease().Preempt(2);
  ASSERT_TRUE(Until([&] { return decode(1).leases.size() == 1; }));
  lease(1).Grant();
  Settle();
  call().FirstToken();
  call().Commit();
  lease(1).Tokens(3, 5, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(5));
}

TEST_F(PreemptTest, ReportsThatGoStaleAreNotBelievedForEver) {
  context_.options.resume_patience = std::chrono::milliseconds(50);
  RunToStreaming();
  decode().reported = {1, 0, 0, 1};
  lease().Preempt(2);
  Reopens(2, 2);
  Finish(2, 4);
}

TEST_F(PreemptTest, ARefusalIsAskedAgainLaterAndLater) {
  RunToStreaming();
  const TimePoint begin = loop_.Now();
  std::vector<TimePoint> asked;
  decode().on_open = [&](auto& lease) {
    asked.push_back(loop_.Now());
    if (asked.size() < 4) return lease.Fail(ResourceExhausted("no KV"));
    lease.Grant();
  };
  lease().Preempt(2);
  ASSERT_TRUE(Until([&] { return prefill().calls.size() == 2; }));
  ASSERT_EQ(asked.size(), 4u);
  EXPECT_GE(asked[1] - asked[0], std::chrono::milliseconds(20));
  EXPECT_GE(asked[2] - asked[1], std::chrono::milliseconds(40));
  EXPECT_GE(asked[3] - asked[2], std::chrono::milliseconds(80));
  EXPECT_GE(asked[0], begin);
  EXPECT_EQ(context_.counters.preemptions, 1) << "a refusal is none";
  Finish(2, 4);
}

TEST_F(PreemptTest, FullPrefillWorkersAreAskedAgain) {
  RunToStreaming();
  int refusals = 0;
  decode().on_open = [](auto& lease) { lease.Grant(); };
  prefill().on_start = [&](auto& call) {
    if (++refusals <= 3) call.Fail(ResourceExhausted("the queue is full"));
  };
  lease().Preempt(2);
  ASSERT_TRUE(Until([&] { return refusals == 4; }));
  call().FirstToken();
  call().Commit();
  lease().Tokens(3, 5, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(5));
}

TEST_F(PreemptTest, FullPrefillWorkersDoNotEndWhatTheClientHasSeenAccepted) {
  int refusals = 0;
  decode().on_open = [](auto& lease) { lease.Grant(); };
  prefill().on_start = [&](auto& call) {
    if (++refusals <= 3) call.Fail(ResourceExhausted("the queue is full"));
  };
  Run();
  ASSERT_TRUE(Until([&] { return refusals == 4; }));
  EXPECT_EQ(client_.started, 1);
  call().FirstToken();
  call().Commit();
  lease().Tokens(1, 3, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(3));
  EXPECT_EQ(client_.started, 1);
}

TEST_F(PreemptTest, PrefillWorkersThatAlwaysRefuseEndIt) {
  context_.options.prefill_patience = std::chrono::milliseconds(10);  // it asks again after 20
  RunToStreaming();
  decode().on_open = [](auto& lease) { lease.Grant(); };
  prefill().on_start = [](auto& call) { call.Fail(ResourceExhausted("too long for its KV")); };
  lease().Preempt(2);
  EXPECT_EQ(Outcome().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(prefill().calls.size(), 1u + 2u);
}

TEST_F(PreemptTest, FirstComeFirstServed) {
  std::optional<ResumeLine::Place> before;
  before.emplace(&context_.line);
  Run();
  const Status refused = Outcome();  // new requests let those go first that are accepted
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(refused), HasSubstr("1 accepted requests wait for room"));
  EXPECT_TRUE(decode().leases.empty());
  before.reset();
  result_.reset();
  RunToStreaming();
  before.emplace(&context_.line);
  lease().Preempt(2);
  Settle();
  EXPECT_EQ(context_.line.size(), 2u);
  EXPECT_EQ(decode().leases.size(), 1u) << "there is room, but it is not its turn";
  before.reset();
  Reopens(2, 2);
  Finish(2, 4);
}

TEST_F(PreemptTest, AnOutputThatIsResumedHereIsNotNew) {
  const ResumeLine::Place before(&context_.line);
  state_.emitted = {TokenAt(0), TokenAt(1)};
  Run();
  ASSERT_EQ(decode().leases.size(), 1u);
  lease().Grant();
  Settle();
  call().FirstToken();
  call().Commit();
  lease().Tokens(3, 5, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), (std::vector<int32_t>{TokenAt(2), TokenAt(3), TokenAt(4)}));
}

TEST_F(PreemptTest, AFailoverToAFullWorkerWaitsToo) {
  AddDecode();
  RunToStreaming();
  decode(1).on_open = [](auto& lease) { lease.Fail(ResourceExhausted("no KV")); };
  decode(0).status = Unavailable("died");
  lease(0).Fail(Unavailable("died"));
  ASSERT_TRUE(Until([&] { return decode(1).leases.size() >= 2; }));
  decode(1).on_open = [](auto& lease) { lease.Grant(); };
  ASSERT_TRUE(Until([&] { return prefill().calls.size() == 2; }));
  call().FirstToken();
  call().Commit();
  lease(1).Tokens(3, 5, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(5));
  EXPECT_EQ(context_.counters.preemptions, 0);
}

TEST_F(PreemptTest, NoWorkerIsThereAnyMore) {
  context_.options.resume_wait = std::chrono::milliseconds(50);
  RunToStreaming();
  decode().status = Unavailable("died");
  lease().Preempt(2);
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("decode0: died"));
}

TEST_F(PreemptTest, AWorkerThatRefusesToResumeItCostsAttemptsInTheEnd) {
  context_.options.max_pairs = 3;
  context_.options.resume_wait = std::chrono::milliseconds(1);
  RunToStreaming();
  decode().on_open = [](auto& lease) { lease.Fail(Unavailable("draining")); };
  lease().Preempt(2);
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(StatusMessage(status), "draining");
  EXPECT_EQ(decode().leases.size(), 1u + 1u + 3u) << "the first refusal is before the end of resume_wait";
}

TEST_F(PreemptTest, RoomIsWhatALeaseBeginsWithAndABlockForEverySequenceThatIsThere) {
  const auto room = [](int64_t running, int64_t leases, int64_t free_blocks, int64_t ahead, int64_t at_most) {
    return RoomToResume({running, 0, 128 * free_blocks, leases, ahead}, 1000, at_most);
  };
  EXPECT_TRUE(room(0, 0, 0, 256, 9000)) << "nobody is there: waiting longer brings nothing";
  EXPECT_FALSE(room(1, 1, 10, 256, 9000));
  EXPECT_TRUE(room(1, 1, 11, 256, 9000)) << "10 for 1256 tokens";
  EXPECT_FALSE(room(1, 2, 11, 256, 9000)) << "those that are prefilled count";
  EXPECT_FALSE(room(1, 1, 16, 1024, 9000)) << "the worker would refuse";
  EXPECT_TRUE(room(1, 1, 17, 1024, 9000));
  EXPECT_TRUE(room(1, 1, 9, 1024, 1010)) << "it ends before it needs more";
  EXPECT_FALSE(room(1, 1, 9, 16, 9000)) << "a block behind its context at least";
  EXPECT_TRUE(room(1, 1, 10, 16, 9000));
}

// ---- what never fits, and too many

TEST_F(PreemptTest, ALargerWorkerIsAskedForWhatASmallOneCannotHold) {
  context_.options.max_pairs = 1;
  BeginsOnTheLargeWorker();
  lease(1).Preempt(1);
  Settle();
  ASSERT_TRUE(Until([&] { return decode(1).leases.size() == 2; })) << "the small one is not asked again";
  EndsOnTheLargeWorker();
}

TEST_F(PreemptTest, ASmallWorkerDoesNotEndWhatALargeOneBegan) {
  BeginsOnTheLargeWorker();
  lease(1).Fail(Unavailable("its session broke"));
  ASSERT_TRUE(Until([&] { return decode(1).leases.size() == 2; })) << "it is back, and the only one that can";
  EndsOnTheLargeWorker();
}

/// Its router died; the leases there hold their KV for a grace more.
TEST_F(PreemptTest, AResumptionFromAnotherRouterWaitsWhereAllAreFull) {
  state_.emitted = Expected(3);
  int refusals = 6;
  decode().on_open = [&](auto& lease) {
    if (refusals-- > 0) lease.Fail(ResourceExhausted("no KV now"));
  };
  Run();
  ASSERT_TRUE(Until([&] { return decode().leases.size() == 7; }));
  EXPECT_EQ(context_.line.size(), 1u);
  lease().Grant();
  Settle();
  call().FirstToken();
  call().Commit();
  lease().Tokens(4, 6, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(context_.line.size(), 0u);
}

TEST_F(PreemptTest, APrefillWorkerThatIsTooSmallIsAskedOnce) {
  AddPrefill();
  RunToPrefill();
  call().Fail(OutOfRange("more than this prefill worker's KV"));
  Settle();
  ASSERT_EQ(prefill(1).calls.size(), 1u);
  prefill(1).calls[0]->Fail(OutOfRange("more than this prefill worker's KV"));
  EXPECT_EQ(Outcome().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(prefill(0).calls.size() + prefill(1).calls.size(), 2u);
}

TEST_F(PreemptTest, AFullPrefillWorkerOutranksOneThatIsTooSmall) { GoesOnBesideOneTooSmall(/*full=*/0); }
TEST_F(PreemptTest, AFullPrefillWorkerOutranksOneThatWasTooSmallBefore) { GoesOnBesideOneTooSmall(/*full=*/1); }

TEST_F(PreemptTest, WhatNoWorkerCanHoldIsRefusedOnce) {
  AddDecode();
  for (size_t i = 0; i < 2; ++i)
    decode(i).on_open = [](auto& lease) { lease.Fail(OutOfRange("more than the KV")); };
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(decode(0).leases.size(), 1u);
  EXPECT_EQ(decode(1).leases.size(), 1u);
  EXPECT_EQ(client_.started, 0);
}

TEST_F(PreemptTest, AFullWorkerThatCouldHoldItSaysRetry) {
  AddDecode();
  decode(0).on_open = [](auto& lease) { lease.Fail(OutOfRange("more than the KV")); };
  decode(1).on_open = [](auto& lease) { lease.Fail(ResourceExhausted("no KV now")); };
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kResourceExhausted);
}

TEST_F(PreemptTest, ARouterTakesSoManyRequests) {
  context_.options.max_requests = 1;
  context_.running = 1;
  Run();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("1 requests run at this router"));
  EXPECT_TRUE(decode().leases.empty());
  EXPECT_EQ(context_.running, 1);
}

}  // namespace
}  // namespace cachalot::testing
