#pragma once
// One regular expression of a tokenizer file, matched by PCRE2 with the meaning that Oniguruma gives it:
// tokenizer files are written for HF tokenizers, which uses Oniguruma. Constructs that the two engines read
// differently are refused instead of being guessed at.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"

// PCRE2's own names, so that its header stays inside the .cc file.
struct pcre2_real_code_8;
struct pcre2_real_match_context_8;

namespace cachalot {

class SplitPattern {
 public:
  /// InvalidArgument with the construct and its byte offset for a pattern outside the supported set, for one
  /// that PCRE2 does not compile and for one that can match nothing.
  static StatusOr<SplitPattern> Compile(std::string_view pattern);

  SplitPattern(SplitPattern&&) = default;
  SplitPattern& operator=(SplitPattern&&) = default;

  /// Cuts every text (valid UTF-8) into its matches and what lies between them, in order, no piece empty.
  /// Each text is a subject of its own: look-ahead does not see the next one. The pieces point into the
  /// texts. Thread-safe.
  Status Split(std::span<const std::string_view> texts, std::vector<std::string_view>* pieces) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
    void operator()(pcre2_real_match_context_8* context) const;
  };

  SplitPattern() = default;

  std::unique_ptr<pcre2_real_code_8, Free> code_;
  std::unique_ptr<pcre2_real_match_context_8, Free> context_;
};

/// The PCRE2 spelling of an Oniguruma pattern; the errors of Compile. Exposed for tests.
StatusOr<std::string> TranslateOniguruma(std::string_view pattern);

}  // namespace cachalot
