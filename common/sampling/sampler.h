#pragma once
// One token from one row of logits. A pure function of (logits, params, output index, tokens before): the
// same on every worker and in any batch, which is what lets a request move between machines without a changed
// token.
//
// The order of operations is vLLM's (vllm/v1/sample/sampler.py and sample/ops/penalties.py, documented at
// docs.vllm.ai/en/v0.20.0/api/vllm/v1/sample/sampler):
//
//   1 logit bias              l += bias
//   2 min tokens              l = -inf for tokens that would end the output too early (commutes with 1)
//   3 repetition penalty      l = l > 0 ? l / p : l * p for tokens in prompt or output
//   4 frequency, presence     l -= f * times in output; l -= p if in output
//   5 temperature             0, greedy: the best of what 1 to 4 leave
//   6 min-p                   probability >= min_p * the likeliest token's
//   7 top-k                   of what 6 left
//   8 top-p                   of what 7 left
//
// 1 to 4 are fp32 operations, one by one.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/status.h"
#include "common/sampling/params.h"
#include "common/sampling/token_history.h"

namespace cachalot {

/// INVALID_ARGUMENT for NaN or out-of-range fields, naming field, wanted and got.
Status ValidateSamplingParams(const SamplingParams& params);

/// A uniform number in [0, 1) from (seed, output index): counter-based (Philox 4x32-10), no state.
double UniformAt(uint64_t seed, uint64_t output_index);

/// What the sampler must know of a sequence beside its params. What is pointed at outlives the call only.
struct SampleContext {
  const TokenHistory* history = nullptr;  // must count when the params have penalties (CHECK)
  /// Tokens that must not come at an output index below params.min_tokens; ids outside the row are ignored.
  std::span<const int32_t> end_ids{}, stop_ids{};
};

class Sampler {
 public:
  /// Scratch for rows of up to vocab_size logits: Sample does not allocate.
  explicit Sampler(int vocab_size);

  /// The steps above, then the inverse of the cumulative distribution in the order of descending logit; ties
  /// go to the lowest id everywhere. `params` must be valid (CHECK). INTERNAL if a logit is NaN or +inf or
  /// all are -inf, from the start or after the steps: never a token.
  StatusOr<int32_t> Sample(std::span<const float> logits, const SamplingParams& params, uint64_t output_index,
                           const SampleContext& context = {});

 private:
  // Tokens are sorted roughly, by the whole part of their distance from the top logit: the answer lies in one
  // bucket, and only that is sorted finely.
  static constexpr int kBuckets = 128;
  static constexpr uint8_t kNoBucket = 255;  // not a candidate

  struct Prefix {
    int32_t last;   // the token at which the sum reaches the mass
    uint64_t mass;  // of the tokens up to and including it
  };

  std::span<const float> Adjust(std::span<const float> logits, const SamplingParams& params,
                                uint64_t output_index, const SampleContext& context);
  void Weigh(std::span<const float> logits, float top, const SamplingParams& params);
  void KeepTop(std::span<const float> logits, size_t count);
  size_t Gather(size_t tokens, int bucket);
  Prefix PrefixOfMass(std::span<const float> logits, uint64_t mass);

  std::vector<float>
      adjusted_;  // [vocab] logits after bias, mask and penalties; empty until a request needs it
  std::vector<int32_t> order_;   // [vocab] ids of the tokens that Gather found
  std::vector<uint8_t> bucket_;  // [vocab] by token id; all of a lower bucket come first in the order
  std::array<size_t, kBuckets> bucket_count_{};

  // Probabilities are whole numbers, relative to the top token's: their sums do not depend on the order of
  // addition.
  std::vector<uint64_t> weights_;  // [vocab] by token id, of the candidates only
  std::array<uint64_t, kBuckets> bucket_mass_{};
  uint64_t total_ = 0;
};

}  // namespace cachalot
