#include "common/tokenizer/special_matcher.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace cachalot {

SpecialMatcher::SpecialMatcher(std::vector<Entry> entries) : entries_(std::move(entries)) {
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.content < b.content; });
  for (const Entry& entry : entries_) {
    CHECK(!entry.content.empty());
    first_byte_[static_cast<unsigned char>(entry.content[0])] = true;
  }
}

std::optional<SpecialMatcher::Match> SpecialMatcher::Find(std::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (!first_byte_[static_cast<unsigned char>(text[at])]) continue;
    if (std::optional<Match> match = LongestAt(text, at)) return match;
  }
  return std::nullopt;
}

std::optional<SpecialMatcher::Match> SpecialMatcher::LongestAt(std::string_view text, size_t begin) const {
  // [low, high) are the entries that agree with the text in their first `depth` bytes; the entry that ends
  // there, if any, sorts first.
  auto low = entries_.begin(), high = entries_.end();
  std::optional<Match> best;
  for (size_t depth = 0; low != high; ++depth) {
    if (low->content.size() == depth) best = Match{begin, depth, (low++)->id};
    if (begin + depth == text.size()) break;
    const unsigned char next = static_cast<unsigned char>(text[begin + depth]);
    low = std::lower_bound(low, high, next, [depth](const Entry& entry, unsigned char byte) {
      return static_cast<unsigned char>(entry.content[depth]) < byte;
    });
    high = std::upper_bound(low, high, next, [depth](unsigned char byte, const Entry& entry) {
      return byte < static_cast<unsigned char>(entry.content[depth]);
    });
  }
  return best;
}

}  // namespace cachalot
