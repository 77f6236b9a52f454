#pragma once
// Requests through the prefill and decode flows on the caller's thread: the embedded mode without a server.

#include <functional>
#include <span>
#include <vector>

#include "client/embedded/embedded_model.h"
#include "common/engine/generation.h"

namespace cachalot {

struct RunOptions {
  int64_t max_chunk_tokens = 256;
  /// Every output token as it comes, by output index.
  std::function<void(int64_t index, int32_t token, FinishReason finish)> on_token;
  /// Before on_token of the same index, and before the first: of prompt tokens from 1 on. When the state
  /// wants them.
  std::function<void(int64_t index, const TokenLogprobs& logprobs)> on_logprobs;
  std::function<void(std::vector<TokenLogprobs> entries)> on_prompt_logprobs;
  /// Before any token, when the first `tokens` of the context came from the model's prefix cache.
  std::function<void(int64_t tokens)> on_cached;
  /// Asked after every on_token: true ends the run as if that token had been the last.
  std::function<bool()> complete;
  /// Rows of logits in order: prompt rows, then one row per decode step. Needs state.want_logits.
  std::function<void(std::span<const float> rows)> on_logits;
};

/// OUT_OF_RANGE when the KV could never fit, RESOURCE_EXHAUSTED when it does not now; else what the flows
/// report.
Status RunEmbedded(EmbeddedModel& embedded, const SequenceState& state, const RunOptions& options);

/// Several at once, options[i] for states[i]; the flow shares the prefill of equal contexts. The first error ends all.
Status RunEmbedded(EmbeddedModel& embedded, std::span<const SequenceState> states,
                   std::span<const RunOptions> options);

}  // namespace cachalot
