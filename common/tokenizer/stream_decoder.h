#pragma once
// Tokens to text while they are generated. A token may end inside a character: what is shown is always whole
// characters.

#include <cstdint>
#include <span>
#include <string>

#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/utf8.h"

namespace cachalot {

enum class SpecialTokens { kSkip, kShow };

/// One stream. All texts returned by Push and Finish together are the same for any grouping of the calls:
/// DecodeText of all ids. Not thread-safe.
class StreamDecoder {
 public:
  /// `tokenizer` must outlive this.
  explicit StreamDecoder(const Tokenizer* tokenizer, SpecialTokens special = SpecialTokens::kSkip)
      : tokenizer_(tokenizer), special_(special) {}

  /// The text that is complete after this token: valid UTF-8, often empty inside a multi-byte character.
  /// Bytes that cannot become a character are U+FFFD. Ids without a token add nothing.
  std::string Push(int32_t id);

  /// The end of the stream: an unfinished character becomes one U+FFFD. Ready for another stream afterwards.
  std::string Finish();

  /// Whether bytes of an unfinished character are held back.
  bool pending() const { return repair_.pending(); }

 private:
  const Tokenizer* tokenizer_;
  SpecialTokens special_;
  Utf8Repair repair_;
};

/// The text of a whole sequence: its bytes decoded as Python's bytes.decode("utf-8", errors="replace") does.
std::string DecodeText(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                       SpecialTokens special = SpecialTokens::kSkip);

}  // namespace cachalot
