#pragma once
// Strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace cachalot {

/// Byte offset of the first sequence that is not valid UTF-8 (a truncated one at the end counts), or npos.
size_t FindInvalidUtf8(std::string_view text);

/// Appends the character, unless it is a surrogate or above U+10FFFF.
bool AppendUtf8(char32_t c, std::string* out);

/// Turns bytes that arrive in arbitrary cuts into valid UTF-8. Each maximal part of an invalid sequence
/// becomes one U+FFFD, so all output together equals Python's bytes.decode("utf-8", errors="replace") of all
/// input together.
class Utf8Repair {
 public:
  /// Appends to `out` what is decided after `bytes`; the start of an unfinished sequence (at most 3 bytes)
  /// stays here.
  void Append(std::string_view bytes, std::string* out);

  /// An unfinished sequence becomes one U+FFFD. Ready for a new stream afterwards.
  void Finish(std::string* out);

  bool pending() const { return count_ > 0; }

 private:
  char held_[4] = {};
  int count_ = 0;
};

}  // namespace cachalot
