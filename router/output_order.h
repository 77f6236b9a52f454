#pragma once
// A request's output in order, whatever order its workers' events come in: the first token is the prefill worker's
// and may be overtaken by the decode worker's; another attempt sends again what the client has. No token is skipped
// and none comes twice. Pure.

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "router/worker_api.h"

namespace cachalot {

class OutputOrder {
 public:
  /// Of `state`, whose emitted tokens the client has.
  explicit OutputOrder(const SequenceState& state);

  /// Another lease: its prefill worker chooses the next token, its decode worker those behind it.
  void NewPair();
  /// The prefill worker's token, and the decode worker's that overtook it. INTERNAL when a token is missing, comes
  /// without the log probability that was wanted, or its worker would go on behind the last one.
  Status First(FlowEvent& event);
  /// A token of the decode worker's. Errors as of First.
  Status Token(FlowEvent& event);
  /// Of `entries` for prompt tokens `first` and those that follow: those that the client has not got, and the token
  /// that they begin with. INTERNAL when some are missing or of no prompt token.
  StatusOr<std::pair<int64_t, std::vector<TokenLogprobs>>> PromptLogprobs(int64_t first,
                                                                          std::vector<TokenLogprobs> entries);
  /// The output is over here, whatever the workers would add.
  void Stop() { finish_ = FinishReason::kStop; }

  /// What goes to the client next.
  struct Next {
    std::vector<int32_t> tokens;
    std::vector<TokenLogprobs> logprobs;  // of each of them, when wanted
    std::vector<std::pair<int64_t, std::vector<float>>> logits;  // debugging: row of the sequence, logits [vocab]
  };
  Next Take() { return std::exchange(next_, {}); }

  const std::vector<int32_t>& tokens() const { return tokens_; }  // that the client has or gets next
  int64_t next_index() const { return static_cast<int64_t>(tokens_.size()); }
  FinishReason finish() const { return finish_; }
  bool finished() const { return finish_ != FinishReason::kNone; }
  bool first_token_missing() const { return tokens_.size() == pair_begin_; }  // of this pair
  bool has_prompt_logprobs() const { return next_prompt_logprob_ >= prompt_tokens_; }  // all of them

 private:
  Status Add(FlowEvent& event);

  int64_t prompt_tokens_, max_tokens_;
  bool want_logprobs_;
  std::vector<int32_t> tokens_;
  size_t pair_begin_;            // tokens before this pair's
  std::deque<FlowEvent> early_;  // the decode worker's tokens that overtook the first token
  Next next_;
  int64_t next_prompt_logprob_ = 1;
  FinishReason finish_ = FinishReason::kNone;
};

}  // namespace cachalot
