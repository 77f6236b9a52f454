#pragma once
// The tiny oracle model with everything that a test needs to play a prefill worker.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/model/forward.h"
#include "tests/support/oracle.h"

namespace cachalot::testing {

class TinyEngine {
 public:
  TinyEngine() = default;

  /// Runs the state's context into `kv` and gives the next token.
  int32_t Prefill(const SequenceState& state, SequenceKv& kv) {
    const auto context = state.Context();
    const Segment segment{&kv, context, false};
    const auto logits = model_.Forward({&segment, 1}, experts_);
    EXPECT_TRUE(logits.ok()) << logits.status();
    return Next(state, state.emitted, logits->last(0));
  }

  /// All of the state's tokens, alone.
  std::vector<int32_t> Generate(const SequenceState& state) {
    SequenceKv kv = *pools_.Reserve(state.MaxTokens());
    std::vector<int32_t> tokens = state.emitted;
    tokens.push_back(Prefill(state, kv));
    const auto& eos = model_.config().eos_token_ids;
    while (FinishAfter(state.params, eos, tokens.back(), static_cast<int64_t>(tokens.size()) - 1) ==
           FinishReason::kNone) {
      const Segment segment{&kv, {&tokens.back(), 1}, false};
      const auto logits = model_.Forward({&segment, 1}, experts_);
      tokens.push_back(Next(state, tokens, logits->last(0)));
    }
    return tokens;
  }

  /// The oracle's request: all of its greedy tokens.
  SequenceState OracleState(const std::string& request_id = "oracle") const {
    SequenceState state;
    state.request_id = request_id;
    state.prompt = oracle_.input_ids;
    state.params.sampling.temperature = 0;
    state.params.max_tokens = static_cast<int>(oracle_.greedy_tokens.size());
    state.params.ignore_eos = true;
    return state;
  }
  /// Another request: the prompt's first `length` ids, sampled.
  SequenceState OtherState(size_t length, int max_tokens, uint64_t seed) const {
    SequenceState state = OracleState("other " + std::to_string(length));
    state.prompt.resize(length);
    state.params.sampling.temperature = 1;
    state.params.sampling.seed = seed;
    state.params.max_tokens = max_tokens;
    return state;
  }

  const OracleCase& oracle() const { return oracle_; }
  const std::shared_ptr<const ModelWeights>& weights() const { return weights_; }
  Model& model() { return model_; }
  BlockPools& pools() { return pools_; }
  LocalExperts& experts() { return experts_; }

 private:
  /// The token behind `output`, with a history that is counted anew.
  int32_t Next(SequenceState state, const std::vector<int32_t>& output, std::span<const float> logits) {
    state.emitted = output;
    TokenHistory history = HistoryOf(state, model_.config().vocab_size);
    const auto next = NextToken(state, model_.config().eos_token_ids, sampler_, history, logits,
                                static_cast<int64_t>(output.size()));
    EXPECT_TRUE(next.ok()) << next.status();
    return next.ok() ? next->token : -1;
  }

  const OracleCase oracle_ = *OracleCase::Load(CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny");
  const std::shared_ptr<const ModelWeights> weights_ =
      *ModelWeights::Load(oracle_.directory, WeightSelection::All());
  const kernels::KernelTable& kernels_ = **kernels::SelectKernels("auto");
  ThreadPool threads_{1};
  Model model_{weights_, kernels_, threads_};
  BlockPools pools_{KvLayout(KvShapeOf(weights_->config)), 16, 16384};
  LocalExperts experts_{ExpertTable(*weights_), kernels_, threads_, weights_->config.swiglu_limit};
  Sampler sampler_{weights_->config.vocab_size};
};

}  // namespace cachalot::testing
