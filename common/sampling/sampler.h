#pragma once
// One token from one row of logits. A pure function of (logits, params, output index): the same on every
// worker and in any batch, which is what lets a request move between machines without a changed token.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/status.h"
#include "common/sampling/params.h"

namespace cachalot {

/// INVALID_ARGUMENT for NaN or out-of-range fields, naming field, wanted and got.
Status ValidateSamplingParams(const SamplingParams& params);

/// A uniform number in [0, 1) from (seed, output index): counter-based (Philox 4x32-10), no state.
double UniformAt(uint64_t seed, uint64_t output_index);

class Sampler {
 public:
  /// Scratch for rows of up to vocab_size logits: Sample does not allocate.
  explicit Sampler(int vocab_size);

  /// Temperature, then top-k, then top-p of what top-k left, then the inverse of the cumulative distribution
  /// in the order of descending logit; ties go to the lowest id everywhere. `params` must be valid (CHECK).
  /// INTERNAL if a logit is NaN or +inf or all are -inf: never a token.
  StatusOr<int32_t> Sample(std::span<const float> logits, const SamplingParams& params,
                           uint64_t output_index);

 private:
  // Tokens are sorted roughly, by the whole part of their distance from the top logit: the answer lies in one
  // bucket, and only that is sorted finely.
  static constexpr int kBuckets = 128;
  static constexpr uint8_t kNoBucket = 255;  // not a candidate

  struct Prefix {
    int32_t last;   // the token at which the sum reaches the mass
    uint64_t mass;  // of the tokens up to and including it
  };

  void Weigh(std::span<const float> logits, float top, const SamplingParams& params);
  void KeepTop(std::span<const float> logits, size_t count);
  size_t Gather(size_t tokens, int bucket);
  Prefix PrefixOfMass(std::span<const float> logits, uint64_t mass);

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
