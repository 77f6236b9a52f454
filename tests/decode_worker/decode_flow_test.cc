#include "decode_worker/decode_flow.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "tests/decode_worker/tiny_engine.h"

namespace cachalot {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// Experts that fail when told to, in the last layer: then every other layer has written its rows already.
class FlakyExperts final : public ExpertBackend {
 public:
  FlakyExperts(ExpertBackend& inner, int last_layer, FakeClock* clock)
      : inner_(inner), last_layer_(last_layer), clock_(clock) {}
  Status Begin(const ExpertCall& call) override {
    layer_ = call.layer;
    return inner_.Begin(call);
  }
  Status Wait() override {
    clock_->Advance(pace);
    if (layer_ == last_layer_ && failures > 0) {
      --failures;
      clock_->Advance(silence);
      return error;
    }
    return inner_.Wait();
  }

  int failures = 0;
  Duration silence{};  // before each failure
  Duration pace{};     // of every layer
  Status error = Unavailable("shard 0/1 is away");

 private:
  ExpertBackend& inner_;
  const int last_layer_;
  FakeClock* const clock_;
  int layer_ = 0;
};

class DecodeFlowTest : public ::testing::Test {
 protected:
  using Progress = DecodeFlow::Progress;
  using Awaited = DecodeFlow::Awaited;

  void Start(DecodeOptions options = {}) {
    flow_ =
        std::make_unique<DecodeFlow>(engine_.model(), experts_, clock_, options, [this] { return awaited_; });
  }
  /// Prefills and joins; the first token is in tokens_[id] then.
  void Join(uint64_t id, const SequenceState& state) {
    SequenceKv kv = *engine_.pools().Reserve(state.MaxTokens() + 1);
    const int32_t first = engine_.Prefill(state, kv);
    tokens_[id] = {first};
    flow_->Join(id, state, std::move(kv), first);
  }
  Progress Step() {
    out_.clear();
    const Progress progress = flow_->Step(out_);
    for (const TokenOut& token : out_) {
      if (!token.error.ok()) continue;
      EXPECT_EQ(token.index, static_cast<int64_t>(tokens_[token.id].size()));
      tokens_[token.id].push_back(token.token);
      if (acknowledge_) flow_->Acknowledge(token.id, token.index + 1);
    }
    return progress;
  }
  void RunToEnd() {
    while (flow_->running() > 0) ASSERT_EQ(Step(), Progress::kStepped);
  }
  std::vector<int32_t> Alone(const SequenceState& state) {
    Start();
    Join(99, state);
    RunToEnd();
    return tokens_[99];
  }

  testing::TinyEngine engine_;
  FakeClock clock_;
  FlakyExperts experts_{engine_.experts(), engine_.model().config().num_hidden_layers - 1, &clock_};
  std::unique_ptr<DecodeFlow> flow_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::vector<TokenOut> out_;
  bool acknowledge_ = true;
  Awaited awaited_ = Awaited::kNothing;
};

TEST_F(DecodeFlowTest, GreedyTokensEqualTheOraclesInABatchWithOthers) {
  const auto first = engine_.OtherState(5, 9, 1), second = engine_.OtherState(11, 30, 2);
  const auto first_alone = Alone(first), second_alone = Alone(second);
  Start();
  Join(1, first);
  Join(2, engine_.OracleState());
  Step();
  Join(3, second);  // in the middle
  RunToEnd();
  EXPECT_EQ(tokens_[2], engine_.oracle().greedy_tokens);
  EXPECT_EQ(tokens_[1], first_alone);
  EXPECT_EQ(tokens_[3], second_alone);
  EXPECT_EQ(engine_.pools().used_blocks(), 0);
}

TEST_F(DecodeFlowTest, MoreSequencesThanABatchTakeTurns) {
  const auto state = engine_.OtherState(7, 12, 3);
  const auto alone = Alone(state);
  Start({.max_batch = 2});
  for (uint64_t id : {1, 2, 3, 4, 5}) Join(id, state);
  for (int i = 0; i < 5; ++i) Step();  // ten turns for five sequences
  EXPECT_EQ(flow_->last_batch(), 2u);
  for (uint64_t id : {1, 2, 3, 4, 5}) EXPECT_EQ(tokens_[id].size(), 3u) << id;
  RunToEnd();
  for (uint64_t id : {1, 2, 3, 4, 5}) EXPECT_EQ(tokens_[id], alone) << id;
}

TEST_F(DecodeFlowTest, AResumedSequenceContinuesTheSameTokens) {
  const auto state = engine_.OtherState(9, 20, 4);
  const auto alone = Alone(state);
  Start();
  auto resumed = state;
  resumed.emitted.assign(alone.begin(), alone.begin() + 8);
  SequenceKv kv = *engine_.pools().Reserve(resumed.MaxTokens() + 1);
  const int32_t first = engine_.Prefill(resumed, kv);
  tokens_[1] = resumed.emitted;
  tokens_[1].push_back(first);
  flow_->Join(1, resumed, std::move(kv), first);
  RunToEnd();
  EXPECT_EQ(tokens_[1], alone);
}

/// Sampled requests whose tokens depend on those before.
std::vector<SequenceState> PenalisedStates(const testing::TinyEngine& engine) {
  std::vector<SequenceState> states;
  for (uint64_t i = 0; i < 4; ++i) states.push_back(engine.OtherState(6 + i, 24, i));
  states[0].params.sampling.frequency_penalty = 1.5f;
  states[1].params.sampling.presence_penalty = 2;
  states[1].params.sampling.min_p = 0.05f;
  states[2].params.sampling.repetition_penalty = 1.7f;
  states[2].params.sampling.temperature = 0;
  states[3].params.sampling.frequency_penalty = -2;
  states[3].params.sampling.logit_bias = {{3, 4.f}};
  states[3].params.stop_token_ids = {3};
  states[3].params.sampling.min_tokens = 20;
  return states;
}

TEST_F(DecodeFlowTest, PenaltiesDoNotDependOnTheBatchNorOnAResumption) {
  const auto states = PenalisedStates(engine_);
  Start();
  for (size_t i = 0; i < states.size(); ++i) Join(i, states[i]);
  Join(100, engine_.OtherState(9, 30, 4));
  RunToEnd();
  for (size_t i = 0; i < states.size(); ++i) {
    const auto alone = engine_.Generate(states[i]);  // counts the history anew for each token
    EXPECT_EQ(tokens_[i], alone) << i;
    EXPECT_GE(alone.size(), 20u);
    auto plain = states[i];
    plain.params.sampling.frequency_penalty = plain.params.sampling.presence_penalty = 0;
    plain.params.sampling.repetition_penalty = 1;
    EXPECT_NE(engine_.Generate(plain), alone) << i << ": the penalty changes nothing";
    for (const size_t have : {1u, 7u, 18u}) {
      auto resumed = states[i];
      resumed.emitted.assign(alone.begin(), alone.begin() + static_cast<ptrdiff_t>(have));
      Start();
      SequenceKv kv = *engine_.pools().Reserve(resumed.MaxTokens() + 1);
      const int32_t first = engine_.Prefill(resumed, kv);
      tokens_[50] = resumed.emitted;
      tokens_[50].push_back(first);
      flow_->Join(50, resumed, std::move(kv), first);
      RunToEnd();
      EXPECT_EQ(tokens_[50], alone) << i << " resumed behind " << have;
    }
  }
}

TEST_F(DecodeFlowTest, LogprobsAreOfTheRawLogits) {
  auto wants = engine_.OtherState(7, 12, 3), not_wants = engine_.OtherState(8, 12, 4);
  wants.want_logits = true;
  wants.params.sampling.logprobs = 5;
  wants.params.sampling.temperature = 2;
  wants.params.sampling.presence_penalty = 1;
  Start();
  Join(1, wants);
  Join(2, not_wants);
  while (flow_->running() > 0) {
    Step();
    for (const TokenOut& token : out_) {
      EXPECT_EQ(token.logprobs.has_value(), token.id == 1);
      if (token.id == 1) {
        EXPECT_EQ(*token.logprobs, LogprobsOf(token.logits, token.token, 5));
      }
    }
  }
}

TEST_F(DecodeFlowTest, AWindowStopsASlowReaderAndNotTheOthers) {
  const auto slow = engine_.OtherState(6, 16, 5), fast = engine_.OtherState(8, 16, 6);
  const auto slow_alone = Alone(slow), fast_alone = Alone(fast);
  Start({.window = 3});
  acknowledge_ = false;
  Join(1, slow);
  Join(2, fast);
  while (tokens_[2].size() < 16) {
    ASSERT_EQ(Step(), Progress::kStepped);
    flow_->Acknowledge(2, static_cast<int64_t>(tokens_[2].size()));
  }
  EXPECT_EQ(tokens_[1].size(), 4u);  // the first one, and a window
  EXPECT_EQ(Step(), Progress::kIdle);
  flow_->Acknowledge(1, 1);
  EXPECT_EQ(Step(), Progress::kStepped);
  EXPECT_EQ(Step(), Progress::kIdle);
  flow_->Acknowledge(1, 1000);  // more than there is
  EXPECT_EQ(Step(), Progress::kStepped);
  acknowledge_ = true;
  flow_->Acknowledge(1, static_cast<int64_t>(tokens_[1].size()));
  RunToEnd();
  EXPECT_EQ(tokens_[1], slow_alone);
  EXPECT_EQ(tokens_[2], fast_alone);
}

TEST_F(DecodeFlowTest, RemoveFreesAtOnce) {
  Start();
  Join(1, engine_.OracleState());
  Step();
  EXPECT_GT(engine_.pools().used_blocks(), 0);
  flow_->Remove(2);
  flow_->Remove(1);
  EXPECT_EQ(engine_.pools().used_blocks(), 0);
  EXPECT_EQ(Step(), Progress::kIdle);
}

TEST_F(DecodeFlowTest, NanLogitsEndTheirSequenceOnly) {
  const auto state = engine_.OracleState();
  Start();
  Join(1, state);
  SequenceKv kv = *engine_.pools().Reserve(state.MaxTokens() + 1);
  const int32_t first = engine_.Prefill(state, kv);
  *kv.Row(PoolTag::kSwaKv, 0, kv.tokens() - 1) = std::nanf("");
  tokens_[2] = {first};
  flow_->Join(2, state, std::move(kv), first);
  EXPECT_EQ(Step(), Progress::kStepped);
  ASSERT_EQ(out_.size(), 2u);
  EXPECT_TRUE(out_[0].error.ok());
  EXPECT_EQ(out_[1].id, 2u);
  EXPECT_EQ(out_[1].error.code(), StatusCode::kInternal);
  EXPECT_EQ(flow_->running(), 1u);
  RunToEnd();
  EXPECT_EQ(tokens_[1], engine_.oracle().greedy_tokens);
}

TEST_F(DecodeFlowTest, AnErrorThatDoesNotPassEndsEverySequence) {
  Start();
  Join(1, engine_.OracleState());
  Join(2, engine_.OtherState(5, 9, 1));
  experts_.failures = 1;
  experts_.error = FailedPrecondition("shard 0/1 has another model");
  EXPECT_EQ(Step(), Progress::kStepped);
  ASSERT_EQ(out_.size(), 2u);
  for (const TokenOut& token : out_) EXPECT_EQ(token.error, experts_.error);
  EXPECT_EQ(flow_->running(), 0u);
  EXPECT_EQ(engine_.pools().used_blocks(), 0);
}

TEST_F(DecodeFlowTest, AnOutageWithinTheGraceChangesNoToken) {
  const auto other = engine_.OtherState(5, 9, 1);
  const auto other_alone = Alone(other);
  Start({.expert_outage_grace = seconds(5)});
  Join(1, engine_.OracleState());
  Join(2, other);
  for (int round = 0; flow_->running() > 0; ++round) {
    experts_.failures = round % 3;
    while (experts_.failures > 0) {
      ASSERT_EQ(Step(), Progress::kExpertsAway);
      clock_.Advance(milliseconds(2400));  // in all below the grace
    }
    ASSERT_EQ(Step(), Progress::kStepped);
  }
  EXPECT_EQ(tokens_[1], engine_.oracle().greedy_tokens);
  EXPECT_EQ(tokens_[2], other_alone);
}

TEST_F(DecodeFlowTest, AnOutageBeyondTheGraceEndsTheSequencesWithItsError) {
  Start({.expert_outage_grace = seconds(5)});
  Join(1, engine_.OracleState());
  Join(2, engine_.OtherState(5, 9, 1));
  experts_.failures = 1000;
  EXPECT_EQ(Step(), Progress::kExpertsAway);
  clock_.Advance(milliseconds(4999));
  EXPECT_EQ(Step(), Progress::kExpertsAway);
  flow_->Remove(2);  // cancels are served meanwhile
  EXPECT_EQ(flow_->running(), 1u);
  clock_.Advance(milliseconds(1));
  EXPECT_EQ(Step(), Progress::kStepped);
  ASSERT_EQ(out_.size(), 1u);
  EXPECT_EQ(out_[0].error.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(StatusMessage(out_[0].error)), ::testing::HasSubstr("shard 0/1"));
  EXPECT_EQ(engine_.pools().used_blocks(), 0);
  experts_.failures = 0;  // later work is served as if nothing had been
  Join(3, engine_.OracleState());
  RunToEnd();
  EXPECT_EQ(tokens_[3], engine_.oracle().greedy_tokens);
}

TEST_F(DecodeFlowTest, TheGraceCountsFromTheCallThatGotNoAnswer) {
  Start({.expert_outage_grace = seconds(5)});
  Join(1, engine_.OracleState());
  experts_.failures = 1000;
  experts_.silence = seconds(1);
  EXPECT_EQ(Step(), Progress::kExpertsAway);
  clock_.Advance(milliseconds(2999));
  experts_.silence = milliseconds(1000);
  EXPECT_EQ(Step(), Progress::kExpertsAway);  // 4.999 s
  experts_.silence = milliseconds(1);
  EXPECT_EQ(Step(), Progress::kStepped);
  ASSERT_EQ(out_.size(), 1u);
  EXPECT_EQ(out_[0].error.code(), StatusCode::kUnavailable);
}

TEST_F(DecodeFlowTest, AnOutageThatNobodyWaitedForToEndIsForgotten) {
  for (const bool idle : {false, true}) {
    Start({.expert_outage_grace = seconds(5)});
    Join(1, engine_.OracleState());
    experts_.failures = 1;
    EXPECT_EQ(Step(), Progress::kExpertsAway);
    flow_->Remove(1);
    if (idle) {
      EXPECT_EQ(Step(), Progress::kIdle);
    }
    clock_.Advance(seconds(60));
    Join(2, engine_.OracleState());
    experts_.failures = 1;
    EXPECT_EQ(Step(), Progress::kExpertsAway) << "it had no grace";
    RunToEnd();
    EXPECT_EQ(tokens_[2], engine_.oracle().greedy_tokens);
  }
}

TEST_F(DecodeFlowTest, AnOutageEndsWhenAllThatWaitedForItsEndStall) {
  Start({.window = 1, .expert_outage_grace = seconds(5)});
  acknowledge_ = false;
  Join(1, engine_.OracleState());
  Join(2, engine_.OtherState(5, 9, 1));
  EXPECT_EQ(Step(), Progress::kStepped);  // both stall now
  flow_->Acknowledge(1, 2);
  experts_.failures = 1;
  EXPECT_EQ(Step(), Progress::kExpertsAway);
  flow_->Remove(1);
  EXPECT_EQ(Step(), Progress::kIdle);
  clock_.Advance(seconds(60));
  flow_->Acknowledge(2, 2);
  experts_.failures = 1;
  EXPECT_EQ(Step(), Progress::kExpertsAway) << "it had no grace";
}

// ---- experts that answer, slowly

TEST_F(DecodeFlowTest, AStepOfSlowExpertsEndsForThoseWhoWaitAndIsDoneAgain) {
  const auto other = engine_.OtherState(5, 9, 1);
  const auto other_alone = Alone(other);
  Start({.expert_outage_grace = {}, .step_limit = seconds(5)});
  Join(1, engine_.OracleState());
  Join(2, other);
  Join(3, engine_.OtherState(7, 12, 3));
  experts_.pace = seconds(2);  // 12 s a step
  EXPECT_EQ(Step(), Progress::kStepped) << "nobody waited";
  awaited_ = Awaited::kRemove;
  experts_.pace = milliseconds(900);
  EXPECT_EQ(Step(), Progress::kStepped) << "within the limit";
  experts_.pace = seconds(2);
  EXPECT_EQ(Step(), Progress::kInterrupted);
  EXPECT_TRUE(out_.empty());
  const int64_t used = engine_.pools().used_blocks();
  flow_->Remove(3);
  EXPECT_LT(engine_.pools().used_blocks(), used);
  // Somebody always waits: every second try brings its tokens all the same.
  for (bool again = true; flow_->running() > 0; again = !again)
    ASSERT_EQ(Step(), again ? Progress::kStepped : Progress::kInterrupted);
  EXPECT_EQ(tokens_[1], engine_.oracle().greedy_tokens);
  EXPECT_EQ(tokens_[2], other_alone);
  EXPECT_EQ(engine_.pools().used_blocks(), 0);
}

TEST_F(DecodeFlowTest, AnInterruptedStepIsDoneAgainBeforeThoseOfOthers) {
  const auto state = engine_.OtherState(7, 12, 3);
  Start({.max_batch = 2, .step_limit = seconds(5)});
  for (uint64_t id : {1, 2, 3, 4}) Join(id, state);
  experts_.pace = seconds(2);
  awaited_ = Awaited::kRemove;
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(Step(), Progress::kInterrupted);
    ASSERT_EQ(Step(), Progress::kStepped);
  }
  for (uint64_t id : {1, 2, 3, 4}) EXPECT_EQ(tokens_[id].size(), 3u) << id;
}

TEST_F(DecodeFlowTest, ARemovalDoesNotMoveTheTurn) {
  const auto state = engine_.OtherState(7, 12, 9);
  Start({.max_batch = 2, .step_limit = seconds(5)});
  for (uint64_t id : {1, 2, 3, 4}) Join(id, state);
  ASSERT_EQ(Step(), Progress::kStepped);  // 1 and 2
  experts_.pace = seconds(2);
  awaited_ = Awaited::kRemove;
  ASSERT_EQ(Step(), Progress::kInterrupted);
  flow_->Remove(1);
  ASSERT_EQ(Step(), Progress::kStepped);
  EXPECT_EQ(tokens_[3].size(), tokens_[2].size()) << "passed over";
  EXPECT_EQ(tokens_[4].size(), tokens_[2].size()) << "passed over";
}

TEST_F(DecodeFlowTest, TheEndWaitsForALayerEvenOfAStepThatIsDoneAgain) {
  Start({.step_limit = seconds(5)});
  Join(1, engine_.OracleState());
  experts_.pace = seconds(2);
  awaited_ = Awaited::kRemove;
  EXPECT_EQ(Step(), Progress::kInterrupted);
  awaited_ = Awaited::kStop;
  const TimePoint begun = clock_.Now();
  EXPECT_EQ(Step(), Progress::kInterrupted);
  EXPECT_EQ(clock_.Now(), begun);
}

TEST_F(DecodeFlowTest, AnInterruptedStepIsNoOutage) {
  Start({.expert_outage_grace = seconds(5), .step_limit = seconds(5)});
  Join(1, engine_.OracleState());
  experts_.pace = seconds(2);
  awaited_ = Awaited::kRemove;
  EXPECT_EQ(Step(), Progress::kInterrupted);
  experts_.failures = 1;
  EXPECT_EQ(Step(), Progress::kExpertsAway) << "the outage began with the interruption";
  EXPECT_EQ(Step(), Progress::kStepped);
  experts_.failures = 1;
  awaited_ = Awaited::kNothing;
  EXPECT_EQ(Step(), Progress::kExpertsAway);
  awaited_ = Awaited::kRemove;
  EXPECT_EQ(Step(), Progress::kInterrupted);  // they answered for 6 s: that outage is over
  experts_.failures = 1;
  EXPECT_EQ(Step(), Progress::kExpertsAway) << "the outage outlived the answers";
  awaited_ = Awaited::kNothing;
  RunToEnd();
  EXPECT_EQ(tokens_[1], engine_.oracle().greedy_tokens);
}

}  // namespace
}  // namespace cachalot
