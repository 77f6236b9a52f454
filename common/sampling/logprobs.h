#pragma once
// Log probabilities of the raw model distribution: log-softmax of a row of logits, before any sampling
// parameter (as vLLM's logprobs_mode "raw_logprobs").

#include <cstdint>
#include <span>
#include <vector>

#include "common/sampling/params.h"

namespace cachalot {

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0.f;  // natural logarithm; -inf for a logit of -inf
  bool operator==(const TokenLogprob&) const = default;
};

struct TokenLogprobs {
  float chosen = 0.f;             // of the token that stands at the position
  std::vector<TokenLogprob> top;  // the likeliest, likeliest first, ties to the lower id
  bool operator==(const TokenLogprobs&) const = default;
};

/// Of `token` and the `count` (0 to kMaxLogprobs) likeliest tokens. The sum goes over the row in order, in
/// double, so that a row has one answer everywhere; results are rounded to fp32 once. The row must have no
/// NaN and a logit above -inf, as every row that a token was sampled from.
TokenLogprobs LogprobsOf(std::span<const float> logits, int32_t token, int count);

}  // namespace cachalot
