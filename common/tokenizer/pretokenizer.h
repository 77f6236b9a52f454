#pragma once
// The `pre_tokenizer` of tokenizer.json: cuts a text into the pieces inside which BPE may merge.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/tokenizer/split_pattern.h"

namespace cachalot {

class PreTokenizer {
 public:
  /// Reads a Sequence of Split (Regex, Isolated) and a final ByteLevel (no prefix space, no regex of its
  /// own), which is what DeepSeek's tokenizers have. Anything else is InvalidArgument with `file` and what
  /// was found.
  static StatusOr<PreTokenizer> FromJson(const nlohmann::json& pre_tokenizer, const std::string& file);

  /// The pieces of `text` (valid UTF-8), in order; together they are the text. They point into it.
  /// Thread-safe.
  StatusOr<std::vector<std::string_view>> Split(std::string_view text) const;

 private:
  std::vector<SplitPattern> patterns_;  // each cuts the pieces left by the one before
};

}  // namespace cachalot
