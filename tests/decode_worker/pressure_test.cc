// Leases that grow, and what a router hears when they cannot: Decode.Session over real gRPC.

#include <gmock/gmock.h>

#include "tests/decode_worker/service_harness.h"

namespace cachalot {
namespace {

using ::testing::HasSubstr;

class PressureTest : public testing::ServiceTest {
 protected:
  void TearDown() override {
    mine_.reset();
    other_.reset();
    ServiceTest::TearDown();
  }
  /// So many blocks of 128 tokens.
  void StartWith(int blocks, int max_sequences = 4) {
    options_.max_sequences = max_sequences;
    options_.kv_tokens = 128 * (blocks - max_sequences);
    options_.sessions.reserve_ahead = 16;
    Start();
  }
  SequenceState State(uint64_t seed, int max_tokens) const {
    SequenceState state = engine_.OtherState(5 + seed, max_tokens, seed);
    state.params.sampling.frequency_penalty = 0.7f;
    return state;
  }
  /// Reads on until `handle` is preempted, and what has come of it until then.
  std::vector<int32_t> ReadToPreemption(testing::TestRouter& router, uint64_t handle) {
    EXPECT_FALSE(router.ReadTokens(handle, SIZE_MAX));
    EXPECT_TRUE(router.preempted.contains(handle));
    EXPECT_EQ(router.preempted[handle], static_cast<int64_t>(router.tokens[handle].size()));
    return router.tokens[handle];
  }
  /// A request of one router has been preempted and does not come back; one of another is refused.
  void RunToAClaim() {
    options_.leases.heartbeat_timeout = std::chrono::hours(24);
    StartWith(6);
    mine_ = GreetedRouter();
    other_ = GreetedRouter();
    Run(*mine_, 1, State(1, 500));
    Run(*mine_, 2, State(2, 500));
    ReadToPreemption(*mine_, 2);
    EXPECT_TRUE(mine_->ReadTokens(1, 500));
    EXPECT_EQ(other_->Refusal(1, State(3, 20)).code(), StatusCode::kResourceExhausted);
  }
  std::unique_ptr<testing::TestRouter> mine_, other_;
};

TEST_F(PressureTest, ALeaseBeginsSmallAndGrows) {
  StartWith(9);
  const auto router = GreetedRouter();
  const int64_t free = server_->pools().free_tokens();
  const auto state = State(1, 900);
  Run(*router, 1, state);
  EXPECT_EQ(server_->pools().free_tokens(), free - 128);
  EXPECT_TRUE(router->ReadTokens(1, 400));
  EXPECT_LE(server_->pools().free_tokens(), free - 4 * 128);
  EXPECT_TRUE(router->ReadTokens(1, 900));
  EXPECT_EQ(router->tokens[1], engine_.Generate(state));
  EXPECT_EQ(Metric("preemptions_total"), 0);
  EXPECT_TRUE(AllFree());
}

TEST_F(PressureTest, ARouterHearsWhatALeaseBeginsWith) {
  StartWith(9);
  const auto newer = NewRouter(), older = NewRouter();
  EXPECT_EQ(newer->Greet(server_->compat()).reserve_ahead_tokens(), 16);
  EXPECT_FALSE(older->Greet(server_->compat(), /*takes_preemption=*/false).has_reserve_ahead_tokens());
}

TEST_F(PressureTest, ThePreemptedGoOnWithTheSameTokens) {
  StartWith(6);
  const auto router = GreetedRouter();
  const auto old = State(1, 500), young = State(2, 500);
  Run(*router, 1, old);
  Run(*router, 2, young);
  auto again = young;
  again.emitted = ReadToPreemption(*router, 2);
  EXPECT_GT(again.emitted.size(), 100u);
  EXPECT_EQ(Metric("preemptions_total"), 1);
  EXPECT_TRUE(router->ReadTokens(1, 500));
  EXPECT_EQ(router->tokens[1], engine_.Generate(old));
  EXPECT_TRUE(AllFree());
  router->preempted.clear();
  Run(*router, 2, again);  // its handle is free again
  EXPECT_TRUE(router->ReadTokens(2, 500));
  EXPECT_EQ(router->tokens[2], engine_.Generate(young));
  EXPECT_EQ(Metric("tokens_total"), 2 * 500 - 3) << "each token once, the prefills' apart";
  EXPECT_TRUE(AllFree());
}

TEST_F(PressureTest, WhatOneRoutersRequestGaveUpIsNotForAnothersNewOnes) {
  options_.leases.heartbeat_timeout = std::chrono::hours(24);
  StartWith(6);
  const auto mine = GreetedRouter(), other = GreetedRouter();
  Run(*mine, 1, State(1, 500));
  Run(*mine, 2, State(2, 500));
  auto again = State(2, 500);
  again.emitted = ReadToPreemption(*mine, 2);
  EXPECT_TRUE(mine->ReadTokens(1, 500));  // there is room for all now
  EXPECT_TRUE(Describe().load().kv_wanted());
  const Status refused = other->Refusal(1, State(3, 20));
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(refused), HasSubstr("1 preempted requests of other routers wait for KV"));
  auto resumed = State(4, 20);
  resumed.emitted = {3};
  other->Lease(2, resumed);  // its client has seen output as well
  Run(*mine, 2, again);
  other->Lease(1, State(3, 20));
}

TEST_F(PressureTest, AClaimToKvEndsWithTime) {
  RunToAClaim();
  clock_.Advance(KvClaims::kClaim);
  other_->Lease(1, State(3, 20));
  EXPECT_FALSE(Describe().load().kv_wanted());
}

TEST_F(PressureTest, AClaimToKvEndsWithItsRouter) {
  RunToAClaim();
  mine_.reset();
  const Gauge& sessions = registry_.AddGauge("cachalot_decode_sessions", "");
  EXPECT_TRUE(testing::Eventually([&] { return sessions.Value() == 1; }));
  other_->Lease(1, State(3, 20));
}

TEST_F(PressureTest, AReaderThatReadsNothingGivesWay) {
  options_.decode.window = 200;
  StartWith(6);
  const auto slow = GreetedRouter(), fast = GreetedRouter();
  const auto first = State(1, 600), second = State(2, 600);
  Run(*slow, 1, first);
  Run(*fast, 1, second);
  EXPECT_TRUE(fast->ReadTokens(1, 600));
  EXPECT_EQ(fast->tokens[1], engine_.Generate(second));
  EXPECT_EQ(Metric("preemptions_total"), 1);
  auto again = first;
  EXPECT_FALSE(slow->ReadTokens(1, SIZE_MAX, /*acknowledge=*/false));
  EXPECT_EQ(slow->preempted[1], 201) << "the first token and a window";
  EXPECT_FALSE(Describe().load().kv_wanted()) << "it has no claim before it reads";
  again.emitted = slow->tokens[1];
  slow->preempted.clear();
  Run(*slow, 1, again);
  EXPECT_TRUE(slow->ReadTokens(1, 600));
  EXPECT_EQ(slow->tokens[1], engine_.Generate(first));
}

TEST_F(PressureTest, AnOlderRouterGetsAllAtOnceAndKeepsIt) {
  StartWith(8);
  const auto older = GreetedRouter(/*takes_preemption=*/false), newer = GreetedRouter();
  const auto kept = State(1, 500), other = State(2, 900);
  const int64_t free = server_->pools().free_tokens();
  Run(*older, 1, kept);
  EXPECT_EQ(server_->pools().free_tokens(), free - 4 * 128);
  Run(*newer, 1, other);
  // The newer one's waits for the other's end, since it is the oldest of those that could give way.
  EXPECT_TRUE(older->ReadTokens(1, 500));
  EXPECT_EQ(older->tokens[1], engine_.Generate(kept));
  EXPECT_TRUE(newer->ReadTokens(1, 900));
  EXPECT_EQ(newer->tokens[1], engine_.Generate(other));
  EXPECT_EQ(Metric("preemptions_total"), 0);
}

TEST_F(PressureTest, DebuggingRunsKeepTheirs) {
  options_.sessions.debug_logits = true;
  StartWith(8);
  const auto router = GreetedRouter();
  const int64_t free = server_->pools().free_tokens();
  auto state = State(1, 500);
  state.want_logits = true;
  router->Lease(1, state);
  EXPECT_EQ(server_->pools().free_tokens(), free - 4 * 128);
}

TEST_F(PressureTest, TheOldestWaitsForALeaseThatIsStillFilled) {
  StartWith(8);
  const auto router = GreetedRouter();
  Run(*router, 1, State(1, 600));
  auto filled = State(2, 100);
  filled.prompt.assign(700, 3);
  router->Lease(2, filled);
  EXPECT_TRUE(router->ReadTokens(1, 230));
  EXPECT_TRUE(testing::Eventually([&] { return Describe().load().kv_wanted(); }));
  EXPECT_TRUE(router->Close(2));  // its prefill has failed
  EXPECT_TRUE(router->ReadTokens(1, 600));
  EXPECT_FALSE(Describe().load().kv_wanted());
  EXPECT_EQ(router->tokens[1], engine_.Generate(State(1, 600)));
  EXPECT_TRUE(AllFree());
}

TEST_F(PressureTest, WhatNeverFitsIsNotToRetryWhatDoesNotFitNowIs) {
  StartWith(6);
  const auto router = GreetedRouter();
  auto state = State(1, 800);
  const Status never = router->Refusal(1, state);
  EXPECT_EQ(never.code(), StatusCode::kOutOfRange);
  EXPECT_THAT(StatusMessage(never),
              HasSubstr("the prompt has 6 tokens and max_tokens is 800: together more than "
                        "the KV of 771 tokens"));
  state.prompt.assign(600, 3);
  state.params.max_tokens = 100;
  router->Lease(2, state);
  const Status now = router->Refusal(3, state);
  EXPECT_EQ(now.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(now), HasSubstr("retry later"));
  EXPECT_TRUE(router->Close(2));
  router->Lease(3, state);
}

TEST_F(PressureTest, ARouterHearsSoonOfKvThatOthersFreed) {
  options_.sessions.heartbeat = std::chrono::hours(1);
  StartWith(12);
  const auto mine = GreetedRouter(), other = GreetedRouter();
  auto state = State(1, 100);
  state.prompt.assign(600, 3);
  other->Lease(1, state);
  const auto free = [](const v1::SessionResponse& response) {
    return response.heartbeat().load().free_kv_tokens();
  };
  v1::SessionResponse response = mine->NextOfAnyKind();
  EXPECT_TRUE(response.has_heartbeat()) << response.DebugString();
  const int64_t with = free(response);
  EXPECT_EQ(response.heartbeat().load().leases(), 1);
  EXPECT_TRUE(other->Close(1));
  response = mine->NextOfAnyKind();
  EXPECT_TRUE(response.has_heartbeat()) << response.DebugString();
  EXPECT_EQ(free(response), with + 5 * 128);
  EXPECT_EQ(response.heartbeat().load().leases(), 0);
}

TEST_F(PressureTest, ARouterThatIsGoneIsPreemptedWithoutAWord) {
  options_.decode.window = 160;
  StartWith(6);
  const auto one = GreetedRouter();
  auto gone = GreetedRouter();
  Run(*one, 1, State(1, 600));
  Run(*gone, 1, State(2, 600));
  EXPECT_TRUE(gone->ReadTokens(1, 20));
  gone.reset();  // its lease lives for the grace, on the clock that stands still
  EXPECT_TRUE(one->ReadTokens(1, 600));
  EXPECT_EQ(one->tokens[1], engine_.Generate(State(1, 600)));
  EXPECT_EQ(Metric("preemptions_total"), 1);
  EXPECT_TRUE(AllFree());
}

}  // namespace
}  // namespace cachalot
