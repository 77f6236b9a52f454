#pragma once
// Finds stop strings in text that comes in pieces, and says which of it can be shown: text that may still
// become a stop string is held back, so that nothing is shown that must be taken back. The result does not
// depend on the pieces.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

inline constexpr size_t kMaxStopStrings = 16;
inline constexpr size_t kMaxStopBytes = 1024;  // of one

/// INVALID_ARGUMENT for too many, an empty, a too long one.
Status ValidateStopStrings(const std::vector<std::string>& stop);

/// The match that ends first counts; of those that end together, the longest. Bytes are compared; text and
/// stop strings of whole UTF-8 characters give text of whole characters.
class StopScanner {
 public:
  /// `stop` must be valid; without any all text is shown at once.
  explicit StopScanner(std::vector<std::string> stop);

  /// The text that can be shown now. With `may_match` false a match that ends in this piece does not count,
  /// but its bytes may belong to a later one. Not after a match.
  std::string Push(std::string_view piece, bool may_match = true);
  /// What was held back and can be shown after all, since no more text comes. Empty after a match.
  std::string Finish();

  bool matched() const { return match_ >= 0; }
  /// Which one; "" when none did.
  const std::string& match() const;

 private:
  // Knuth-Morris-Pratt for each string: fall[i] is how long a prefix of it ends its first i bytes, i itself
  // left out.
  struct Pattern {
    std::string text;
    std::vector<size_t> fall;
    size_t state = 0;  // so many first bytes of it are the last bytes of the text
  };
  void Feed(char c);

  std::vector<Pattern> patterns_;
  std::string held_;  // the longest end of the text that begins a stop string
  int match_ = -1;
};

}  // namespace cachalot
