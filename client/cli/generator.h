#pragma once
// One generation, embedded or at a router, behind one interface: what `generate` and `chat` print does not depend on
// where it ran.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/cli/common_flags.h"
#include "client/sdk/client.h"
#include "common/base/status.h"

namespace cachalot::cli {

struct ChatTurn {
  std::string role, content;
};

/// Exactly one of ids, text and chat.
struct Prompt {
  std::optional<std::vector<int32_t>> ids;
  std::optional<std::string> text;
  std::vector<ChatTurn> chat;
};

struct GenerationOptions {
  int max_tokens = 16;
  float temperature = 0, top_p = 1;
  int top_k = 0;
  std::optional<uint64_t> seed;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
  float min_p = 0, frequency_penalty = 0, presence_penalty = 0, repetition_penalty = 1;
  std::vector<std::pair<int32_t, float>> logit_bias;
  int min_tokens = 0, n = 1;
  std::vector<std::string> stop;
  std::optional<int> logprobs, prompt_logprobs;
};

struct Choice {
  std::vector<int32_t> token_ids;
  std::optional<std::string> text;  // none without a tokenizer
  std::string finish_reason;        // "stop" or "length"
  std::string matched_stop;         // the stop string that ended it
  int64_t cached_tokens = 0;        // of the prompt, from a prefix cache
  std::vector<client::TokenLogprobs> logprobs;  // one of each token when asked for
};

/// Choice 0 and what the choices share.
struct GenerationResult : Choice {
  std::vector<Choice> others;  // choices 1 to n - 1
  Choice& choice(size_t i) { return i == 0 ? *this : others[i - 1]; }
  std::vector<client::TokenLogprobs> prompt_logprobs;  // of prompt tokens 1, 2, ...
  int prompt_tokens = 0;
  double first_token_seconds = 0, total_seconds = 0;
};

/// A failure ends the generation with it.
using OnText = std::function<Status(const std::string&)>;

class Generator {
 public:
  virtual ~Generator() = default;
  /// `on_text` gets text of choice 0 as it becomes complete.
  virtual StatusOr<GenerationResult> Generate(const Prompt& prompt, const GenerationOptions& options,
                                              const OnText& on_text) = 0;
  /// All rows [ids, vocab]; the last `decode` ids go one at a time through the decode path.
  struct LogitsResult {
    std::vector<float> values;
    int64_t vocab = 0;
  };
  virtual StatusOr<LogitsResult> Logits(const std::vector<int32_t>& ids, int decode, int chunk) = 0;
};

StatusOr<std::unique_ptr<Generator>> MakeEmbeddedGenerator(const Target& target);
StatusOr<std::unique_ptr<Generator>> MakeRouterGenerator(const Target& target);
StatusOr<std::unique_ptr<Generator>> MakeGenerator(const Target& target);

}  // namespace cachalot::cli
