#include "common/engine/generation.h"

#include <algorithm>

namespace cachalot {

std::vector<int32_t> SequenceState::Context() const {
  std::vector<int32_t> ids = prompt;
  ids.insert(ids.end(), emitted.begin(), emitted.end());
  return ids;
}

FinishReason FinishAfter(const GenerationParams& params, std::span<const int> eos_token_ids, int32_t token,
                         int64_t output_index) {
  const auto among = [token](const auto& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
  if (!params.ignore_eos && among(eos_token_ids)) return FinishReason::kStop;
  if (among(params.stop_token_ids)) return FinishReason::kStop;
  return output_index + 1 >= params.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

StatusOr<int32_t> NextToken(const SequenceState& state, Sampler& sampler, std::span<const float> logits,
                            int64_t output_index) {
  if (output_index < static_cast<int64_t>(state.forced.size())) return state.forced[output_index];
  return sampler.Sample(logits, state.params.sampling, static_cast<uint64_t>(output_index));
}

}  // namespace cachalot
