#pragma once
// What a sequence is to every role: enough state to resume it anywhere (DESIGN 2).

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/sampling/sampler.h"

namespace cachalot {

enum class FinishReason : uint8_t {
  kNone,    // not finished
  kStop,    // an end token or a stop token id, which is the last token
  kLength,  // max_tokens reached
};

struct GenerationParams {
  SamplingParams sampling;
  int max_tokens = 0;       // output tokens in all, those emitted before a resumption included
  bool ignore_eos = false;  // the model's end tokens do not finish; stop_token_ids still do
  std::vector<int32_t> stop_token_ids;
};

struct SequenceState {
  std::string request_id;
  std::vector<int32_t> prompt;
  std::vector<int32_t> emitted;  // output tokens that the client already has
  GenerationParams params;

  // Debugging (off unless the process runs with --debug-logits): tokens to take instead of sampled ones, by output
  // index, and every row of logits on the way.
  std::vector<int32_t> forced;
  bool want_logits = false;

  /// Tokens whose KV must exist before the next one can be sampled.
  std::vector<int32_t> Context() const;
  /// Tokens of KV that the sequence may need in all.
  int64_t MaxTokens() const { return static_cast<int64_t>(prompt.size()) + params.max_tokens; }
};

/// Whether output token `token` at `output_index` is the last one.
FinishReason FinishAfter(const GenerationParams& params, std::span<const int> eos_token_ids, int32_t token,
                         int64_t output_index);

/// The token at `output_index`: forced if the sequence says so, else sampled. INTERNAL for NaN logits.
StatusOr<int32_t> NextToken(const SequenceState& state, Sampler& sampler, std::span<const float> logits,
                            int64_t output_index);

}  // namespace cachalot
