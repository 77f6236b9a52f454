#pragma once
// One token from one row of logits. A pure function of (logits, params, output index): the same on every
// worker and in any batch, which is what lets a request move between machines without a changed token.

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
  void Weigh(std::span<const float> logits, float top, const SamplingParams& params);
  struct Prefix {
    int32_t last;   // the token at which the sum reaches the mass
    uint64_t mass;  // of the tokens up to and including it
  };
  Prefix PrefixOfMass(std::span<const float> logits, uint64_t mass);

  // Probabilities are whole numbers (relative to the top token's): their sums do not depend on the order of
  // addition, so only as much needs sorting as the answer takes.
  std::vector<int32_t> order_;     // [candidates] token ids, in no order that matters
  std::vector<uint64_t> weights_;  // [vocab] by token id, of the candidates only
  size_t candidates_ = 0;
  uint64_t total_ = 0;  // of the candidates' weights
};

}  // namespace cachalot
