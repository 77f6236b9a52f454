#include "router/admission.h"

#include <algorithm>

namespace cachalot {
namespace {

Status CheckIds(const char* field, const std::vector<int32_t>& ids, int vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab_size)
      return InvalidArgument(std::string(field) + "[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
                             ", wanted a token id in [0, " + std::to_string(vocab_size) + ")");
  return OkStatus();
}

/// What goes to every worker and into every line of the log, or is searched for every token.
Status CheckSizes(const SequenceState& state) {
  if (state.request_id.size() > kMaxRequestIdBytes)
    return InvalidArgument("request_id has " + std::to_string(state.request_id.size()) + " bytes, wanted at most " +
                           std::to_string(kMaxRequestIdBytes));
  const auto unprintable = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(state.request_id.begin(), state.request_id.end(), unprintable))
    return InvalidArgument("request_id: wanted no control characters");
  if (state.params.stop_token_ids.size() > kMaxStopTokenIds)
    return InvalidArgument("stop_token_ids has " + std::to_string(state.params.stop_token_ids.size()) +
                           " ids, wanted at most " + std::to_string(kMaxStopTokenIds));
  return OkStatus();
}

}  // namespace

Status Admit(const SequenceState& state, const ModelLimits& limits) {
  if (state.prompt.empty()) return InvalidArgument("the prompt has no tokens");
  RETURN_IF_ERROR(CheckSizes(state));
  RETURN_IF_ERROR(CheckIds("token_ids", state.prompt, limits.vocab_size));
  RETURN_IF_ERROR(CheckIds("resume_tokens", state.emitted, limits.vocab_size));
  RETURN_IF_ERROR(CheckIds("stop_token_ids", state.params.stop_token_ids, limits.vocab_size));
  RETURN_IF_ERROR(CheckIds("ids", state.forced, limits.vocab_size));
  if (state.params.max_tokens < 1)
    return InvalidArgument("max_tokens is " + std::to_string(state.params.max_tokens) +
                           ", wanted at least 1");
  if (static_cast<int64_t>(state.emitted.size()) > state.params.max_tokens)
    return InvalidArgument("resume_tokens has " + std::to_string(state.emitted.size()) +
                           " tokens, max_tokens allows " + std::to_string(state.params.max_tokens) +
                           " in all");
  RETURN_IF_ERROR(ValidateGenerationParams(state.params, limits.vocab_size));
  const auto prompt = static_cast<int64_t>(state.prompt.size());
  if (prompt + state.params.max_tokens > limits.max_context_tokens)
    return OutOfRange("the prompt has " + std::to_string(prompt) + " tokens and max_tokens is " +
                      std::to_string(state.params.max_tokens) + ": together more than the context of " +
                      std::to_string(limits.max_context_tokens) + "; shorten the prompt or lower max_tokens");
  return OkStatus();
}

}  // namespace cachalot
