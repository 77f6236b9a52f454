#include "common/sampling/logprobs.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "common/base/check.h"

namespace cachalot {
namespace {

/// log(sum(exp(logits))).
double LogSumExp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

}  // namespace

TokenLogprobs LogprobsOf(std::span<const float> logits, int32_t token, int count) {
  CHECK(token >= 0 && static_cast<size_t>(token) < logits.size());
  CHECK(count >= 0 && count <= kMaxLogprobs);
  const double total = LogSumExp(logits);
  const auto logprob = [&](int32_t id) { return static_cast<float>(logits[id] - total); };

  // The best so far in order: most tokens of a row fail at the first comparison, with the last of them. Ids
  // ascend, so that an equal logit goes behind.
  std::array<int32_t, kMaxLogprobs> best;
  int found = 0;
  for (int32_t id = 0; count > 0 && id < static_cast<int32_t>(logits.size()); ++id) {
    if (found == count && !(logits[id] > logits[best[found - 1]])) continue;
    int at = found < count ? found++ : found - 1;
    for (; at > 0 && logits[id] > logits[best[at - 1]]; --at) best[at] = best[at - 1];
    best[at] = id;
  }
  TokenLogprobs result{logprob(token), {}};
  for (int i = 0; i < found; ++i) result.top.push_back({best[i], logprob(best[i])});
  return result;
}

}  // namespace cachalot
