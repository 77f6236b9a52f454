#pragma once
// The text of one output while its tokens come: whole characters, without stop strings and what may become
// one.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/engine/stop_scanner.h"
#include "common/tokenizer/stream_decoder.h"

namespace cachalot {

/// What a request wants of its output that workers need not know.
struct OutputOptions {
  int n = 1;
  std::vector<std::string> stop;
};

inline constexpr int kMaxChoices = 64;

/// INVALID_ARGUMENT names the field, what is wanted and what it got; FAILED_PRECONDITION for stop strings
/// without a tokenizer.
Status ValidateOutputOptions(const OutputOptions& options, bool has_tokenizer);

class OutputText {
 public:
  /// `tokenizer` may be null: then there is no text, and `stop` must be empty. Stop strings count from the
  /// token behind the first `min_tokens` on (as in vLLM: what they match may begin before).
  OutputText(const Tokenizer* tokenizer, std::vector<std::string> stop, int min_tokens);

  /// The text that the next token completes and that can be shown. Not after a match.
  std::string Push(int32_t token);
  /// What was held back; the output is over.
  std::string Finish();

  /// A stop string is complete: the last token belongs to the output, more do not.
  bool stopped() const { return scanner_.matched(); }
  const std::string& matched_stop() const { return scanner_.match(); }
  bool has_text() const { return decoder_.has_value(); }
  int64_t tokens() const { return tokens_; }

 private:
  std::optional<StreamDecoder> decoder_;
  StopScanner scanner_;
  const int min_tokens_;
  int64_t tokens_ = 0;
};

}  // namespace cachalot
