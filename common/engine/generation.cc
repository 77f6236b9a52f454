#include "common/engine/generation.h"

#include <algorithm>

namespace cachalot {

std::vector<int32_t> SequenceState::Context() const {
  std::vector<int32_t> ids = prompt;
  ids.insert(ids.end(), emitted.begin(), emitted.end());
  return ids;
}

Status ValidateGenerationParams(const GenerationParams& params, int vocab_size) {
  RETURN_IF_ERROR(ValidateSamplingParams(params.sampling));
  for (const LogitBias& entry : params.sampling.logit_bias)
    if (entry.id >= vocab_size)
      return InvalidArgument("logit_bias: wanted a token id in [0, " + std::to_string(vocab_size) +
                             "), got " + std::to_string(entry.id));
  if (params.prompt_logprobs < kNoLogprobs || params.prompt_logprobs > kMaxLogprobs)
    return InvalidArgument("prompt_logprobs: wanted 0 to 20, got " + std::to_string(params.prompt_logprobs));
  if (params.sampling.min_tokens > params.max_tokens)
    return InvalidArgument("min_tokens: wanted at most max_tokens, which is " +
                           std::to_string(params.max_tokens) + ", got " +
                           std::to_string(params.sampling.min_tokens));
  return OkStatus();
}

FinishReason FinishAfter(const GenerationParams& params, std::span<const int> eos_token_ids, int32_t token,
                         int64_t output_index) {
  const auto among = [token](const auto& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
  if (!params.ignore_eos && among(eos_token_ids)) return FinishReason::kStop;
  if (among(params.stop_token_ids)) return FinishReason::kStop;
  return output_index + 1 >= params.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

TokenHistory HistoryOf(const SequenceState& state, int vocab_size) {
  if (!state.params.sampling.has_penalties()) return {};
  return TokenHistory(state.prompt, state.emitted, state.MaxTokens(), vocab_size);
}

StatusOr<OutputToken> NextToken(const SequenceState& state, std::span<const int> eos_token_ids,
                                Sampler& sampler, TokenHistory& history, std::span<const float> logits,
                                int64_t output_index) {
  const GenerationParams& params = state.params;
  OutputToken output;
  if (output_index < static_cast<int64_t>(state.forced.size())) {
    output.token = state.forced[output_index];
  } else {
    SampleContext context{&history, eos_token_ids, params.stop_token_ids};
    if (params.ignore_eos) context.end_ids = {};
    ASSIGN_OR_RETURN(output.token,
                     sampler.Sample(logits, params.sampling, static_cast<uint64_t>(output_index), context));
  }
  history.Add(output.token);
  output.finish = FinishAfter(params, eos_token_ids, output.token, output_index);
  if (params.sampling.logprobs != kNoLogprobs)
    output.logprobs = LogprobsOf(logits, output.token, params.sampling.logprobs);
  return output;
}

std::vector<TokenLogprobs> PromptLogprobs(const SequenceState& state, int64_t from, int64_t to,
                                          std::span<const float> logits, int vocab_size) {
  const int64_t end = std::min(to, static_cast<int64_t>(state.prompt.size()) - 1);
  std::vector<TokenLogprobs> entries;
  for (int64_t row = from; row < end; ++row)
    entries.push_back(LogprobsOf(logits.subspan((row - from) * vocab_size, vocab_size), state.prompt[row + 1],
                                 state.params.prompt_logprobs));
  return entries;
}

}  // namespace cachalot
