// Sequences that join with less KV than they need, in pools that cannot hold them all.

#include <gmock/gmock.h>

#include <deque>
#include <map>
#include <random>

#include "decode_worker/decode_flow.h"
#include "tests/decode_worker/tiny_engine.h"

namespace cachalot {
namespace {

using Progress = DecodeFlow::Progress;

/// Pools of `blocks` blocks of 128 tokens and the flow over them; the test is the router, which opens again
/// what is preempted.
class DecodePressureTest : public ::testing::Test {
 protected:
  static constexpr int kSequences = 12, kBlock = 128;
  static constexpr int64_t kAhead = 16;

  void Start(int blocks, DecodeOptions options = {}) {
    ASSERT_GT(blocks, kSequences);
    // The pools add a block for each sequence.
    pools_ = std::make_unique<BlockPools>(KvLayout(KvShapeOf(engine_.model().config())), kSequences,
                                          int64_t{blocks - kSequences} * kBlock);
    flow_ = std::make_unique<DecodeFlow>(engine_.model(), engine_.experts(), clock_, options);
  }
  ~DecodePressureTest() override { flow_.reset(); }

  /// False: no room now.
  bool Join(uint64_t id, SequenceState state, bool preemptible = true) {
    const auto context = static_cast<int64_t>(state.Context().size());
    auto kv = pools_->Reserve(preemptible ? std::min(state.MaxTokens(), context + kAhead) : state.MaxTokens(),
                              state.MaxTokens());
    if (!kv.ok()) return false;
    tokens_[id] = state.emitted;
    tokens_[id].push_back(engine_.Prefill(state, *kv));
    states_[id] = state;
    if (static_cast<int>(tokens_[id].size()) == state.params.max_tokens)
      return true;  // its first token is its last
    flow_->Join(id, std::move(state), std::move(*kv), tokens_[id].back(), preemptible);
    return true;
  }
  Progress Step() {
    out_.clear();
    const Progress progress = flow_->Step(out_);
    for (const TokenOut& out : out_) {
      EXPECT_TRUE(out.error.ok()) << out.error;
      EXPECT_EQ(out.index, static_cast<int64_t>(tokens_[out.id].size())) << out.id;
      if (out.preempted) {
        line_.push_back(out.id);
        ++preempted_[out.id];
        continue;
      }
      tokens_[out.id].push_back(out.token);
      if (!silent_.contains(out.id)) flow_->Acknowledge(out.id, out.index + 1);
    }
    return progress;
  }
  /// The first in the line comes back with what it has, if there is room.
  void Resume() {
    while (!line_.empty()) {
      SequenceState state = states_[line_.front()];
      state.emitted = tokens_[line_.front()];
      if (!Join(line_.front(), state)) return;
      line_.pop_front();
    }
  }
  void RunToEnd() {
    for (int steps = 0; flow_->running() > 0 || !line_.empty(); ++steps) {
      ASSERT_LT(steps, 20000) << line_.size() << " wait, " << flow_->running() << " run";
      Resume();
      Step();
    }
  }
  int preemptions() const {
    int sum = 0;
    for (const auto& [id, count] : preempted_) sum += count;
    return sum;
  }

  testing::TinyEngine engine_;
  FakeClock clock_;
  std::unique_ptr<BlockPools> pools_;
  std::unique_ptr<DecodeFlow> flow_;
  std::map<uint64_t, SequenceState> states_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::map<uint64_t, int> preempted_;
  std::set<uint64_t> silent_;  // readers that acknowledge nothing
  std::deque<uint64_t> line_;
  std::vector<TokenOut> out_;
};

/// Greedy and sampled ones with penalties, whose tokens depend on all those before.
SequenceState StateOf(const testing::TinyEngine& engine, uint64_t i, int max_tokens) {
  SequenceState state = engine.OtherState(5 + i % 11, max_tokens, i);
  if (i % 4 == 1) state.params.sampling.frequency_penalty = 1.5f;
  if (i % 4 == 2) state.params.sampling.repetition_penalty = 1.3f;
  if (i % 4 == 3) state.params.sampling.temperature = 0;
  return state;
}

TEST_F(DecodePressureTest, PreemptedSequencesGiveTheTokensOfAnUndisturbedRun) {
  std::vector<std::vector<int32_t>> alone;
  for (uint64_t i = 0; i < 8; ++i) alone.push_back(engine_.Generate(StateOf(engine_, i, 300)));
  Start(13);  // of the 24 that they need together
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(Join(i, StateOf(engine_, i, 300)));
  RunToEnd();
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(tokens_[i], alone[i]) << i;
  EXPECT_GT(preemptions(), 2);
  EXPECT_EQ(preempted_.count(0), 0u) << "the oldest";
  EXPECT_EQ(pools_->used_blocks(), 0);
}

TEST_F(DecodePressureTest, AnyMixFinishes) {
  for (uint32_t seed = 0; seed < 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    Start(13, {.max_batch = seed % 2 ? 3 : 64});
    tokens_.clear();
    std::map<uint64_t, SequenceState> all;
    for (uint64_t i = 0; i < 10; ++i) {
      all[i] = StateOf(engine_, i + 10 * seed, 1 + static_cast<int>(rng() % 400));
      tokens_[i] = {};
      states_[i] = all[i];
      line_.push_back(i);
    }
    RunToEnd();
    for (const auto& [id, state] : all) EXPECT_EQ(tokens_[id], engine_.Generate(state)) << id;
    EXPECT_EQ(pools_->used_blocks(), 0);
  }
  EXPECT_GT(preemptions(), 5);
}

TEST_F(DecodePressureTest, ASequenceWhoseReaderReadsNothingGivesUpItsKvFirst) {
  const auto alone = engine_.Generate(StateOf(engine_, 0, 400));
  Start(13, {.window = 140});
  silent_ = {0};
  ASSERT_TRUE(Join(0, StateOf(engine_, 0, 400)));  // the oldest
  for (uint64_t i = 1; i < 6; ++i) ASSERT_TRUE(Join(i, StateOf(engine_, i, 340)));
  while (preemptions() == 0) ASSERT_EQ(Step(), Progress::kStepped);
  EXPECT_EQ(preempted_, (std::map<uint64_t, int>{{0, 1}}));
  EXPECT_GT(tokens_[0].size(), 140u);  // a window, and not one lost
  for (uint64_t i = 1; i < 6; ++i) EXPECT_EQ(tokens_[i].size(), tokens_[1].size()) << "all run on";
  silent_.clear();  // it reads again
  RunToEnd();
  EXPECT_EQ(tokens_[0], alone);
}

TEST_F(DecodePressureTest, StalledOnesGiveTheirKvToWhoeverAsks) {
  Start(13, {.window = 20});
  silent_ = {0, 1, 2};
  std::vector<std::vector<int32_t>> alone;
  for (uint64_t i = 0; i < 4; ++i) {
    alone.push_back(engine_.Generate(StateOf(engine_, i, 200)));
    ASSERT_TRUE(Join(i, StateOf(engine_, i, 200)));
  }
  flow_->Reclaim(1);
  ASSERT_EQ(Step(), Progress::kStepped);
  EXPECT_EQ(preemptions(), 0) << "nobody is stalled yet";
  while (tokens_[3].size() < 40) ASSERT_EQ(Step(), Progress::kStepped);
  EXPECT_EQ(preemptions(), 0);
  flow_->Reclaim(129);
  ASSERT_EQ(Step(), Progress::kStepped);
  EXPECT_EQ(preempted_, (std::map<uint64_t, int>{{1, 1}, {2, 1}})) << "the youngest, and no more than needed";
  silent_.clear();
  flow_->Acknowledge(0, static_cast<int64_t>(tokens_[0].size()));
  RunToEnd();
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(tokens_[i], alone[i]) << i;
}

TEST_F(DecodePressureTest, OneThatCannotBePreemptedKeepsItsKv) {
  Start(13);
  const auto kept = StateOf(engine_, 1, 600);
  ASSERT_TRUE(Join(0, StateOf(engine_, 0, 700)));
  ASSERT_TRUE(Join(1, kept, /*preemptible=*/false));
  for (uint64_t i = 2; i < 6; ++i) ASSERT_TRUE(Join(i, StateOf(engine_, i, 500)));
  RunToEnd();
  EXPECT_EQ(tokens_[1], engine_.Generate(kept));
  EXPECT_EQ(preempted_.count(1), 0u);
  EXPECT_EQ(preempted_.count(0), 0u);
  EXPECT_GT(preemptions(), 0);
}

TEST_F(DecodePressureTest, TheLastThatRunsWaitsForKvOfOthersOutside) {
  const auto state = StateOf(engine_, 0, 300);
  Start(13);
  ASSERT_TRUE(Join(0, state));
  auto lease = pools_->Reserve(12 * kBlock);  // one whose prefill goes on
  ASSERT_TRUE(lease.ok());
  Progress progress = Progress::kStepped;
  while (progress == Progress::kStepped) progress = Step();
  EXPECT_EQ(progress, Progress::kNoRoom);
  EXPECT_EQ(Step(), Progress::kNoRoom);
  EXPECT_EQ(preemptions(), 0);
  lease->Release();
  RunToEnd();
  EXPECT_EQ(tokens_[0], engine_.Generate(state));
}

TEST_F(DecodePressureTest, WhatNeverFitsIsToldBothNumbers) {
  Start(13);
  auto state = StateOf(engine_, 0, 13 * kBlock - 5);
  EXPECT_TRUE(CheckHolds(*pools_, state).ok());
  state.params.max_tokens += 8;
  const Status status = CheckHolds(*pools_, state);
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_EQ(StatusMessage(status),
            "the prompt has 5 tokens and max_tokens is 1667: together more than the KV of 1667 "
            "tokens; lower max_tokens or raise --kv-tokens");
}

}  // namespace
}  // namespace cachalot
