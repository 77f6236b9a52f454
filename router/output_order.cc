#include "router/output_order.h"

#include <algorithm>
#include <string>

namespace cachalot {

OutputOrder::OutputOrder(const SequenceState& state)
    : prompt_tokens_(static_cast<int64_t>(state.prompt.size())),
      max_tokens_(state.params.max_tokens),
      want_logprobs_(state.params.sampling.logprobs != kNoLogprobs),
      tokens_(state.emitted),
      pair_begin_(tokens_.size()) {}

void OutputOrder::NewPair() {
  pair_begin_ = tokens_.size();
  early_.clear();
}

Status OutputOrder::First(FlowEvent& event) {
  RETURN_IF_ERROR(Add(event));
  while (!finished() && !early_.empty()) {
    FlowEvent next = std::move(early_.front());
    early_.pop_front();
    RETURN_IF_ERROR(Add(next));
  }
  return OkStatus();
}

Status OutputOrder::Token(FlowEvent& event) {
  if (first_token_missing() && event.index == next_index() + 1 + static_cast<int64_t>(early_.size())) {
    early_.push_back(std::move(event));
    return OkStatus();
  }
  return Add(event);
}

Status OutputOrder::Add(FlowEvent& event) {
  if (event.index < next_index()) return OkStatus();
  if (event.index > next_index())
    return Internal("output token " + std::to_string(event.index) + " came before token " +
                    std::to_string(next_index()));
  if (want_logprobs_) {
    if (event.logprobs.size() != 1)
      return Internal("output token " + std::to_string(event.index) + " came without its log probability");
    next_.logprobs.push_back(std::move(event.logprobs[0]));
  }
  next_.tokens.push_back(event.token);
  tokens_.push_back(event.token);
  finish_ = event.finish;
  // Nothing would come any more, or what nobody asked for.
  if (!finished() && next_index() >= max_tokens_)
    return Internal("output token " + std::to_string(event.index) + " is the last of " +
                    std::to_string(max_tokens_) + ", but its worker goes on");
  if (!event.logits.empty())
    next_.logits.emplace_back(prompt_tokens_ + event.index - 1, std::move(event.logits));
  return OkStatus();
}

StatusOr<std::pair<int64_t, std::vector<TokenLogprobs>>> OutputOrder::PromptLogprobs(
    int64_t first, std::vector<TokenLogprobs> entries) {
  const auto count = static_cast<int64_t>(entries.size());
  if (first < 1 || first > prompt_tokens_ || count > prompt_tokens_ - first)
    return Internal("log probabilities of " + std::to_string(count) + " prompt tokens from token " +
                    std::to_string(first) + " on came for a prompt of " + std::to_string(prompt_tokens_));
  if (first > next_prompt_logprob_)
    return Internal("log probability of prompt token " + std::to_string(first) + " came before token " +
                    std::to_string(next_prompt_logprob_));
  const int64_t known = std::min(next_prompt_logprob_ - first, count);
  entries.erase(entries.begin(), entries.begin() + known);
  next_prompt_logprob_ = std::max(next_prompt_logprob_, first + count);
  return std::pair(first + known, std::move(entries));
}

}  // namespace cachalot
