#pragma once
// Finds the texts of added tokens in a prompt: leftmost first, and the longest of those that start there.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cachalot {

class SpecialMatcher {
 public:
  struct Entry {
    std::string content;  // not empty
    int32_t id;
  };
  struct Match {
    size_t begin, length;  // bytes
    int32_t id;
  };

  explicit SpecialMatcher(std::vector<Entry> entries);

  /// The first match that begins at byte `from` or later.
  std::optional<Match> Find(std::string_view text, size_t from) const;

 private:
  std::optional<Match> LongestAt(std::string_view text, size_t begin) const;

  std::vector<Entry> entries_;             // sorted by content
  std::array<bool, 256> first_byte_ = {};  // bytes that open an entry
};

}  // namespace cachalot
