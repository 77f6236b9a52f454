// The two ways back: another prefill under the same lease, another pair of workers.

#include <gmock/gmock.h>

#include "tests/router/flow_harness.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Kind = FlowEvent::Kind;

class RetryTest : public FlowTest {
 protected:
  RetryTest() {
    AddDecode();
    AddPrefill();
  }
  /// To the first prefill of the first lease, on decode 0 and prefill 0.
  void RunToPrefill() {
    Run();
    lease().Grant();
    Settle();
    ASSERT_EQ(prefill().calls.size(), 1u);
  }
  static void MissExperts(FakePrefill::Call& call) {
    FlowEvent away = EventOf(Kind::kPrefillFailed, call.options.attempt);
    away.error = Unavailable("expert shard 1/2 at x: no connection");
    away.experts_away = true;
    call.Push(std::move(away));
  }
  /// The request ends well on `decode` and `prefill`, behind what it has; it has been opened there already.
  void FinishOn(size_t decode_worker, size_t prefill_worker, int64_t from, int64_t to) {
    if (call(prefill_worker).open) {
      call(prefill_worker).FirstToken();
      call(prefill_worker).Commit();
    }
    lease(decode_worker).Tokens(from, to, FinishReason::kStop);
    const Status status = Outcome();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(client_.tokens(), Expected(to));
    EXPECT_EQ(client_.started, 1);
    EXPECT_EQ((*result_)->output_tokens, to);
  }
};

// ---- another prefill

TEST_F(RetryTest, PrefillFailsBeforeItsFirstToken) {
  RunToPrefill();
  call(0).Fail(Unavailable("died"));
  Settle();
  EXPECT_FALSE(call(0).open);
  ASSERT_EQ(prefill(1).calls.size(), 1u);
  EXPECT_EQ(call(1).options.attempt, 2u);
  ASSERT_EQ(decode(0).leases.size(), 1u);
  EXPECT_TRUE(lease().open);
  EXPECT_TRUE(decode(1).leases.empty());
  FinishOn(0, 1, 1, 4);
  EXPECT_EQ(context_.counters.prefill_retries, 1);
  EXPECT_EQ(context_.counters.decode_failovers, 0);
}

TEST_F(RetryTest, PrefillFailsAfterItsFirstToken) {
  for (const bool at_once : {false, true}) {
    SCOPED_TRACE(at_once);
    client_.messages.clear();
    client_.started = 0;
    result_.reset();
    RunToPrefill();
    call(0).FirstToken();
    if (!at_once) Settle();
    call(0).Fail(Unavailable("died"));
    Settle();
    // The client has the token in any case, and the decode worker still waits for the sequence as it was
    // opened.
    EXPECT_EQ(client_.tokens(), Expected(1));
    ASSERT_EQ(prefill(1).calls.size(), 1u);
    EXPECT_EQ(call(1).options.attempt, 2u);
    EXPECT_EQ(call(1).state.emitted, lease().state.emitted);
    EXPECT_TRUE(call(1).state.emitted.empty());
    FinishOn(0, 1, 1, 4);
    for (size_t i = 0; i < 2; ++i) {
      decode(i).leases.clear();
      prefill(i).calls.clear();
    }
  }
}

TEST_F(RetryTest, PrefillFailingBehindTheFirstDecodedTokenIsIgnored) {
  RunToPrefill();
  call(0).FirstToken();
  lease().Tokens(1, 2);
  call(0).Fail(Unavailable("died behind its commit"));
  Settle();
  EXPECT_TRUE(prefill(1).calls.empty());
  lease().Tokens(2, 4, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(4));
}

TEST_F(RetryTest, PrefillFailingBehindItsCommitIsIgnored) {
  RunToPrefill();
  call(0).FirstToken();
  call(0).Commit();
  call(0).Fail(Unavailable("died behind its commit"));
  Settle();
  EXPECT_TRUE(prefill(1).calls.empty());
  lease().Tokens(1, 4, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(4));
}

TEST_F(RetryTest, EventsOfAnOlderAttemptAreIgnored) {
  RunToPrefill();
  const auto queue = call(0).queue;
  call(0).Fail(Unavailable("silent"));
  Settle();
  ASSERT_EQ(prefill(1).calls.size(), 1u);
  FlowEvent token = EventOf(Kind::kFirstToken, 1), failed = EventOf(Kind::kPrefillFailed, 1);
  token.token = 7777;
  failed.error = Internal("old");
  FlowEvent rows = EventOf(Kind::kPromptLogits, 1);
  rows.logits = {1.f};
  for (FlowEvent* event : {&token, &rows, &failed}) queue->Push(std::move(*event));
  queue->Push(EventOf(Kind::kCommitted, 1));
  Settle();
  EXPECT_TRUE(client_.messages.empty());
  EXPECT_TRUE(client_.rows.empty());
  // The old commit did not count either: this attempt can still fail and be replaced.
  call(1).Fail(Unavailable("died"));
  Settle();
  ASSERT_EQ(prefill(0).calls.size(), 2u);
  EXPECT_EQ(call(0).options.attempt, 3u);
  FinishOn(0, 0, 1, 3);
}

TEST_F(RetryTest, AShardThatTwoPrefillWorkersMissIsAwayForTheRequest) {
  AddPrefill();
  RunToPrefill();
  MissExperts(call(0));
  Settle();
  ASSERT_EQ(prefill(1).calls.size(), 1u) << "only the link may be broken";
  MissExperts(call(1));
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(StatusMessage(status)), HasSubstr("shard 1/2"));
  EXPECT_TRUE(prefill(2).calls.empty());
  EXPECT_TRUE(decode(1).leases.empty()) << "another pair has the same experts";
}

TEST_F(RetryTest, OutagesOfBeforeAPrefillThatWentWellDoNotCount) {
  RunToPrefill();
  MissExperts(call(0));
  Settle();
  call(1).FirstToken();
  call(1).Commit();
  lease(0).Tokens(1, 3);
  Settle();
  lease(0).Fail(Unavailable("died"));
  Settle();
  lease(1).Grant();
  Settle();
  const size_t at = call(0).open ? 0 : 1;
  MissExperts(call(at));
  Settle();
  EXPECT_FALSE(done());
  FinishOn(1, 1 - at, 4, 6);
}

TEST_F(RetryTest, ALeaseHasSoManyPrefills) {
  context_.options.max_prefill_attempts = 3;
  context_.options.max_pairs = 2;
  for (size_t i = 0; i < 2; ++i) {
    decode(i).on_open = [](auto& lease) { lease.Grant(); };
    prefill(i).on_start = [](auto& call) { call.Fail(Unavailable("no luck")); };
  }
  Run();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(prefill(0).calls.size() + prefill(1).calls.size(), 6u);
  EXPECT_EQ(decode(0).leases.size(), 1u);
  EXPECT_EQ(decode(1).leases.size(), 1u);
  EXPECT_EQ(context_.counters.prefill_retries, 4);
}

TEST_F(RetryTest, ALeaseThatIsRefusedTwiceTakesAnotherPair) {
  context_.options.max_pairs = 2;
  for (size_t i = 0; i < 2; ++i) {
    decode(i).on_open = [](auto& lease) { lease.Grant(); };
    prefill(i).on_start = [](auto& call) { call.Fail(Aborted("the decode worker takes no frames")); };
  }
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kAborted);
  EXPECT_EQ(prefill(0).calls.size() + prefill(1).calls.size(), 4u);
  EXPECT_EQ(decode(0).leases.size(), 1u);
  EXPECT_EQ(decode(1).leases.size(), 1u);
}

TEST_F(RetryTest, WorkersTroublesAreRetriedAndNeverTheClientsCode) {
  // A worker's time-out is not the request's deadline, its cancellation not the client's, damage is repaired
  // by another transfer.
  for (const StatusCode code :
       {StatusCode::kDeadlineExceeded, StatusCode::kCancelled, StatusCode::kDataLoss}) {
    context_.options.max_prefill_attempts = 2;
    context_.options.max_pairs = 1;
    for (size_t i = 0; i < 2; ++i) {
      decode(i).on_open = [](auto& lease) { lease.Grant(); };
      prefill(i).on_start = [code](auto& call) { call.Fail(MakeStatus(code, "trouble")); };
      prefill(i).calls.clear();
    }
    result_.reset();
    client_.started = 0;
    Run();
    const Status status = Outcome();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
    EXPECT_THAT(StatusMessage(status), HasSubstr("trouble"));
    EXPECT_EQ(prefill(0).calls.size(), 1u);
    EXPECT_EQ(prefill(1).calls.size(), 1u);
  }
}

TEST_F(RetryTest, ErrorsOfTheRequestItselfAreNotRetried) {
  for (const StatusCode code :
       {StatusCode::kInvalidArgument, StatusCode::kFailedPrecondition, StatusCode::kInternal,
        StatusCode::kUnimplemented, StatusCode::kNotFound}) {
    for (const bool from_decode : {false, true}) {
      SCOPED_TRACE(std::to_string(static_cast<int>(code)) + (from_decode ? " decode" : " prefill"));
      for (size_t i = 0; i < 2; ++i) {
        decode(i).leases.clear();
        prefill(i).calls.clear();
      }
      result_.reset();
      client_.started = 0;
      RunToPrefill();
      if (from_decode) {
        lease().Fail(MakeStatus(code, "no"));
      } else {
        call().Fail(MakeStatus(code, "no"));
      }
      const Status status = Outcome();
      EXPECT_EQ(status.code(), code);
      EXPECT_EQ(StatusMessage(status), "no");
      EXPECT_TRUE(prefill(1).calls.empty());
      EXPECT_TRUE(decode(1).leases.empty());
    }
  }
}

TEST_F(RetryTest, AFailureWithoutAReasonIsABug) {
  RunToPrefill();
  lease().Fail(OkStatus());
  EXPECT_EQ(Outcome().code(), StatusCode::kInternal);
}

TEST_F(RetryTest, DebuggingRunsAreNotRetried) {
  state_.want_logits = true;
  RunToPrefill();
  call().Logits(0, {1.f});
  call().Fail(Unavailable("died"));
  EXPECT_EQ(Outcome().code(), StatusCode::kUnavailable);
  EXPECT_TRUE(prefill(1).calls.empty());
  EXPECT_TRUE(decode(1).leases.empty());
  EXPECT_EQ(client_.rows.size(), 1u);
}

// ---- the decode worker runs although its prefill seemed to fail

TEST_F(RetryTest, TokensThatComeWhileAPrefillWorkerIsSoughtAreKept) {
  RunToPrefill();
  prefill(0).status = prefill(1).status = Unavailable("away");
  call().FirstToken();
  call().Fail(Unavailable("the stream broke"));
  Settle();
  EXPECT_TRUE(lease().open);
  lease().Tokens(1, 3);
  Settle();
  EXPECT_EQ(client_.tokens(), Expected(3));
  lease().Tokens(3, 4, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(4));
  EXPECT_EQ(prefill(0).calls.size() + prefill(1).calls.size(), 1u);
}

TEST_F(RetryTest, TheNextAttemptsFirstTokenMayBeTheMissingOne) {
  RunToPrefill();
  call(0).Fail(Unavailable("the stream broke behind the commit"));
  Settle();
  ASSERT_EQ(prefill(1).calls.size(), 1u);
  lease().Tokens(1, 3);
  call(1).FirstToken();
  call(1).Fail(Aborted("attempt 2 came when the sequence ran already"));
  Settle();
  EXPECT_EQ(client_.tokens(), Expected(3));
  lease().Tokens(3, 5, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(5));
  EXPECT_EQ(decode(0).leases.size(), 1u);
}

TEST_F(RetryTest, AFirstTokenThatIsLostTakesAnotherPair) {
  RunToPrefill();
  lease().Tokens(1, 3);
  call(0).Fail(Unavailable("died between commit and first token"));
  Settle();
  EXPECT_FALSE(lease(0).open);
  ASSERT_EQ(decode(1).leases.size(), 1u);
  EXPECT_TRUE(lease(1).state.emitted.empty());
  lease(1).Grant();
  Settle();
  const size_t next = prefill(1).calls.empty() ? 0 : 1;
  EXPECT_EQ(call(next).options.attempt, 1u);
  FinishOn(1, next, 1, 5);
}

TEST_F(RetryTest, AFirstTokenThatIsLostWhileSeekingTakesAnotherPair) {
  RunToPrefill();
  prefill(0).status = prefill(1).status = Unavailable("away");
  call(0).Fail(Unavailable("died between commit and first token"));
  Settle();
  lease().Tokens(1, 3);
  Settle();
  prefill(0).status = prefill(1).status = OkStatus();
  Settle();
  ASSERT_EQ(decode(1).leases.size(), 1u);
  lease(1).Grant();
  Settle();
  ASSERT_EQ(prefill(0).calls.size() + prefill(1).calls.size(), 2u);
  const size_t next = prefill(1).calls.empty() ? 0 : 1;
  FinishOn(1, next, 1, 5);
}

// ---- another pair

TEST_F(RetryTest, DecodeDiesMidStream) {
  RunToStreaming();
  // Tokens that came just before the end are the client's.
  lease(0).Tokens(2, 5);
  lease(0).Fail(Unavailable("died"));
  Settle();
  EXPECT_EQ(client_.tokens(), Expected(5));
  EXPECT_FALSE(lease(0).open);
  ASSERT_EQ(decode(1).leases.size(), 1u);
  EXPECT_EQ(lease(1).state.emitted, Expected(5));
  EXPECT_EQ(lease(1).state.prompt, state_.prompt);
  lease(1).Grant();
  Settle();
  ASSERT_EQ(prefill(0).calls.size(), 2u);
  EXPECT_EQ(call(0).options.attempt, 1u);
  EXPECT_EQ(call(0).state.emitted, Expected(5));
  FinishOn(1, 0, 6, 9);
  EXPECT_EQ(context_.counters.decode_failovers, 1);
  EXPECT_EQ(context_.counters.prefill_retries, 0);
}

TEST_F(RetryTest, TheRestOfADeadPairIsForgotten) {
  RunToStreaming();
  decode(1).status = Unavailable("away");
  decode(0).status = Unavailable("away");
  lease(0).Fail(Unavailable("died"));
  // Behind the end of the pair, before the next one: none of it may count.
  lease(0).Fail(Internal("died again"));
  lease(0).Tokens(9, 10);
  Settle();
  EXPECT_FALSE(done());
  decode(1).status = OkStatus();
  const TimePoint patience = loop_.Now() + std::chrono::seconds(30);
  while (decode(1).leases.empty() && loop_.Now() < patience) loop_.PollOnce(patience);
  ASSERT_EQ(decode(1).leases.size(), 1u);
  lease(1).Grant();
  Settle();
  FinishOn(1, 0, 3, 5);
}

TEST_F(RetryTest, DecodeDiesBeforeItsGrant) {
  Run();
  lease(0).Fail(Unavailable("died"));
  Settle();
  EXPECT_EQ(client_.started, 0);
  ASSERT_EQ(decode(1).leases.size(), 1u);
  lease(1).Grant();
  Settle();
  FinishOn(1, 0, 1, 3);
  EXPECT_EQ(context_.counters.decode_failovers, 0);
}

TEST_F(RetryTest, PreemptedBeforeItsGrantIsNoReasonToWait) {
  Run();
  lease(0).Preempt(0);
  Settle();
  ASSERT_EQ(decode(1).leases.size(), 1u);
  lease(1).Grant();
  Settle();
  FinishOn(1, 0, 1, 3);
  EXPECT_EQ(context_.counters.lease_retries, 1);
}

TEST_F(RetryTest, ALastTokenThatEndsNothingIsAnError) {
  RunToStreaming();
  lease(0).Tokens(2, state_.params.max_tokens + 2);
  Settle();
  ASSERT_TRUE(done());
  EXPECT_EQ(result_->status().code(), StatusCode::kInternal) << result_->status();
  EXPECT_EQ(client_.tokens(), Expected(state_.params.max_tokens));
}

TEST_F(RetryTest, DecodeDiesWhileAPrefillWorkerIsSought) {
  RunToPrefill();
  prefill(0).status = prefill(1).status = Unavailable("away");
  call(0).Fail(Unavailable("cannot reach the decode worker"));
  Settle();
  lease(0).Fail(Unavailable("died"));
  Settle();
  ASSERT_EQ(decode(1).leases.size(), 1u);
  prefill(1).status = OkStatus();
  lease(1).Grant();
  Settle();
  FinishOn(1, 1, 1, 3);
}

TEST_F(RetryTest, DecodeThatDoesNotAnswerIsReplaced) {
  context_.options.lease_wait = std::chrono::milliseconds(5);
  Run();
  const TimePoint patience = loop_.Now() + std::chrono::seconds(30);
  decode(1).on_open = [](auto& lease) { lease.Grant(); };
  while (decode(1).leases.empty() && loop_.Now() < patience) loop_.PollOnce(patience);
  Settle();
  EXPECT_FALSE(lease(0).open);
  FinishOn(1, 0, 1, 3);
}

TEST_F(RetryTest, NoDecodeWorkerAnswers) {
  context_.options.lease_wait = std::chrono::milliseconds(2);
  context_.options.max_pairs = 2;
  Run();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("decode1 did not answer"));
  EXPECT_EQ(client_.started, 0);
}

TEST_F(RetryTest, AFullDecodeWorkerIsPassedOver) {
  decode(0).on_open = [](auto& lease) { lease.Fail(ResourceExhausted("no KV")); };
  decode(1).on_open = [](auto& lease) { lease.Grant(); };
  Run();
  ASSERT_EQ(decode(1).leases.size(), 1u);
  FinishOn(1, 0, 1, 3);
}

TEST_F(RetryTest, AllDecodeWorkersAreFull) {
  for (size_t i = 0; i < 2; ++i)
    decode(i).on_open = [](auto& lease) { lease.Fail(ResourceExhausted("no KV")); };
  Run();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(StatusMessage(status), "no KV");
  EXPECT_EQ(client_.started, 0);
  EXPECT_EQ(decode(0).leases.size(), 1u);  // nobody is asked twice
  EXPECT_EQ(decode(1).leases.size(), 1u);
}

TEST_F(RetryTest, AllPrefillWorkersAreFull) {
  context_.options.prefill_patience = Duration::zero();  // each is asked once
  for (size_t i = 0; i < 2; ++i) {
    decode(i).on_open = [](auto& lease) { lease.Grant(); };
    prefill(i).on_start = [](auto& call) { call.Fail(ResourceExhausted("the queue is full")); };
  }
  Run();
  EXPECT_EQ(Outcome().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(prefill(0).calls.size(), 1u);
  EXPECT_EQ(prefill(1).calls.size(), 1u);
}

TEST_F(RetryTest, ARequestHasSoManyPairs) {
  context_.options.max_pairs = 3;
  for (size_t i = 0; i < 2; ++i) decode(i).on_open = [](auto& lease) { lease.Fail(Unavailable("flapping")); };
  Run();
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(StatusMessage(status), "flapping");
  EXPECT_EQ(decode(0).leases.size() + decode(1).leases.size(), 3u);
}

}  // namespace
}  // namespace cachalot::testing
