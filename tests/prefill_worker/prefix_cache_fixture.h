#pragma once
// The prefill flow with a prefix cache, over any checkpoint and mode, and what a run without it gives.

#include <gtest/gtest.h>
#include <xxhash.h>

#include <memory>
#include <string>
#include <vector>

#include "common/kv/transfer_frame.h"
#include "common/moe/local_experts.h"
#include "prefill_worker/prefill_flow.h"
#include "prefill_worker/prefix_cache.h"

namespace cachalot::testing {

/// The bytes of all hand-off rows at n.
inline uint64_t DigestOfKv(const SequenceKv& kv, int64_t n) {
  uint64_t digest = 0;
  for (const RowRange& range : HandOffRows(kv.layout(), n))
    for (int64_t r = 0; r < range.count; ++r)
      digest = XXH3_64bits_withSeed(kv.RowBytes(range.pool, range.layer, range.first + r),
                                    kv.layout().pool(range.pool).row_bytes(), digest);
  return digest;
}

/// What a prefill of n tokens amounts to: KV, first token, and the logits as far as they can be told.
struct Outcome {
  uint64_t kv = 0;
  int32_t token = -1;
  std::optional<TokenLogprobs> logprobs;  // of it and the 20 likeliest
  bool operator==(const Outcome&) const = default;
};

class OutcomeSink final : public PrefillSink {
 public:
  void OnCached(int64_t tokens) override {
    EXPECT_EQ(reached, 0);
    cached = tokens;
  }
  void OnChunk(const SequenceKv& kv, int64_t from, int64_t to, std::span<const float> logits) override {
    EXPECT_EQ(from, reached);
    EXPECT_EQ(kv.tokens(), to);
    reached = to;
    ends.push_back(to);
    logit_rows.insert(logit_rows.end(), logits.begin(), logits.end());
  }
  void OnFirstToken(OutputToken first, SequenceKv kv) override {
    outcome = {DigestOfKv(kv, kv.tokens()), first.token, first.logprobs};
    done = true;
  }
  void OnError(const Status& status) override { error = status; }

  int64_t cached = 0, reached = 0;
  std::vector<int64_t> ends;  // of the chunks
  std::vector<float> logit_rows;
  Outcome outcome;
  bool done = false;
  Status error;
};

/// A model with local experts and KV for some long prompts.
struct CacheModel {
  CacheModel(const std::string& directory, const std::string& mode)
      : weights(*ModelWeights::Load(directory, WeightSelection::All())),
        kernels(**kernels::SelectKernels("auto", mode)),
        pools(KvLayout(KvShapeOf(weights->config, kernels.mode)), 16, 32768),
        model(weights, kernels, threads),
        experts(ExpertTable(*weights), kernels, threads, weights->config.swiglu_limit) {}

  std::unique_ptr<PrefixStore> Store(int64_t bytes = int64_t{1} << 30) const {
    return MakePrefixStore(model, pools.layout(), {.bytes = bytes});
  }
  /// A prompt that depends on its seed from token `from` on; before, it is that of seed 1.
  std::vector<int32_t> Prompt(int64_t tokens, int seed, int64_t from = 0) const {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < tokens; ++i)
      ids.push_back(static_cast<int32_t>((i * 7919 + i * i * 31 + (i < from ? 1 : seed) * 104729) %
                                         weights->config.vocab_size));
    return ids;
  }
  SequenceState State(std::vector<int32_t> prompt) const {
    SequenceState state;
    state.request_id = "test";
    state.prompt = std::move(prompt);
    state.params.sampling.temperature = 0;
    state.params.sampling.logprobs = 20;
    state.params.max_tokens = 1 << 10;
    return state;
  }
  std::shared_ptr<OutcomeSink> Submit(PrefillFlow& flow, uint64_t id, SequenceState state) {
    auto sink = std::make_shared<OutcomeSink>();
    SequenceKv kv = *pools.Reserve(static_cast<int64_t>(state.Context().size()));
    flow.Submit({id, std::move(state), std::move(kv), 0, sink});
    return sink;
  }
  /// One prompt through a flow of its own.
  std::shared_ptr<OutcomeSink> Run(const std::vector<int32_t>& prompt, PrefixStore* store,
                                   int64_t max_chunk = 256) {
    PrefillFlow flow(model, experts, max_chunk, store);
    auto sink = Submit(flow, 1, State(prompt));
    while (flow.Step()) {
    }
    EXPECT_TRUE(sink->done) << sink->error;
    return sink;
  }

  ThreadPool threads{1};
  std::shared_ptr<const ModelWeights> weights;
  const kernels::KernelTable& kernels;
  BlockPools pools;
  Model model;
  LocalExperts experts;
};

}  // namespace cachalot::testing
