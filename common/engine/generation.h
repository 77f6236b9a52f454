#pragma once
// What a sequence is to every role: enough state to resume it anywhere (docs/architecture.md).

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/sampling/logprobs.h"
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
  int prompt_logprobs =
      kNoLogprobs;  // of every prompt token but the first: as sampling.logprobs, of output tokens
};

/// Tokens of KV that a sequence of `context` tokens gets at first, where it may need `at_most` in all and takes more as
/// it goes on: a decode worker gives it so much, and a router looks for as much before it asks.
constexpr int64_t FirstKvTokens(int64_t context, int64_t at_most, int64_t ahead) {
  return ahead < at_most - context ? context + ahead : at_most;
}

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
  int64_t ContextTokens() const { return static_cast<int64_t>(prompt.size() + emitted.size()); }
  /// Tokens of KV that the sequence may need in all.
  int64_t MaxTokens() const { return static_cast<int64_t>(prompt.size()) + params.max_tokens; }
};

/// INVALID_ARGUMENT names the field, what is wanted and what it got.
Status ValidateGenerationParams(const GenerationParams& params, int vocab_size);

/// Whether output token `token` at `output_index` is the last one.
FinishReason FinishAfter(const GenerationParams& params, std::span<const int> eos_token_ids, int32_t token,
                         int64_t output_index);

/// One output token as it was chosen.
struct OutputToken {
  int32_t token = 0;
  FinishReason finish = FinishReason::kNone;
  std::optional<TokenLogprobs> logprobs;  // when the sequence wants them
};

/// What prompt and emitted tokens amount to for NextToken. Empty when the params do not need it.
TokenHistory HistoryOf(const SequenceState& state, int vocab_size);

/// The token at `output_index`: forced if the sequence says so, else sampled. It goes into `history`, which
/// has all tokens before it. Allocates only for log probabilities. INTERNAL for NaN logits.
StatusOr<OutputToken> NextToken(const SequenceState& state, std::span<const int> eos_token_ids,
                                Sampler& sampler, TokenHistory& history, std::span<const float> logits,
                                int64_t output_index);

/// Of the prompt tokens that follow rows [from, to) of the context: `logits` has one row for each of them.
/// Empty for rows at and behind the prompt's last.
std::vector<TokenLogprobs> PromptLogprobs(const SequenceState& state, int64_t from, int64_t to,
                                          std::span<const float> logits, int vocab_size);

}  // namespace cachalot
