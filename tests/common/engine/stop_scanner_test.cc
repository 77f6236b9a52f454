#include "common/engine/stop_scanner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace cachalot {
namespace {

using ::testing::HasSubstr;

struct Scan {
  std::string text, match;
  bool operator==(const Scan&) const = default;
};

/// What the header promises, over the whole text at once: the first end, then the longest.
Scan Naive(const std::string& text, const std::vector<std::string>& stop) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string longest;
    for (const std::string& s : stop)
      if (s.size() <= end && s.size() > longest.size() && text.compare(end - s.size(), s.size(), s) == 0)
        longest = s;
    if (!longest.empty()) return {text.substr(0, end - longest.size()), longest};
  }
  return {text, ""};
}

/// Whether `shown` could not be shown yet: some longer end of the text so far begins a stop string.
size_t MustHold(const std::string& text, const std::vector<std::string>& stop) {
  size_t hold = 0;
  for (const std::string& s : stop)
    for (size_t k = 1; k < s.size() && k <= text.size(); ++k)
      if (text.compare(text.size() - k, k, s, 0, k) == 0) hold = std::max(hold, k);
  return hold;
}

/// Feeds the pieces and holds every promise on the way against the text so far.
Scan Feed(const std::vector<std::string>& pieces, const std::vector<std::string>& stop) {
  StopScanner scanner(stop);
  std::string fed, shown;
  for (const std::string& piece : pieces) {
    if (scanner.matched()) break;
    fed += piece;
    shown += scanner.Push(piece);
    const Scan whole = Naive(fed, stop);
    EXPECT_EQ(scanner.match(), whole.match) << fed;
    const size_t want = whole.match.empty() ? fed.size() - MustHold(fed, stop) : whole.text.size();
    EXPECT_EQ(shown, fed.substr(0, want));
  }
  shown += scanner.Finish();
  return {shown, scanner.match()};
}

struct Case {
  std::string text;
  std::vector<std::string> stop;
};

const std::vector<Case> kCases = {
    {"the cat sat", {"cat"}},
    {"the cat sat", {}},
    {"aaaaab", {"aab"}},  // falls back inside itself
    {"ababac abacab", {"abac"}},
    {"xabcy", {"abc", "bc", "c"}},  // all end together: the longest
    {"xabcy", {"abcd", "bc"}},      // the longer one never comes
    {"abcab", {"abcabd"}},          // held to the end, shown after all
    {"nothing here", {"zzz", "hereafter"}},
    {"\n\nQ: a\nQ:", {"\nQ:", "\n\n\n"}},
    {"stop", {"stop"}},
    {"sstopp", {"top", "stop!", "op"}},
    {"日本語の文", {"語の"}},
    {"éèêé", {"ê", "éé"}},
    {"🐳🐋🐳🐬", {"🐳🐬"}},
};

TEST(StopScanner, EverySplitGivesTheWholeTextsAnswer) {
  for (const Case& c : kCases) {
    const Scan whole = Naive(c.text, c.stop);
    // Every way to cut the text: each gap between bytes is a cut or is none.
    ASSERT_LE(c.text.size(), 20u);
    const size_t gaps = c.text.size() - 1;
    for (uint32_t cuts = 0; cuts<(1u << gaps); cuts += gaps> 14 ? 7 : 1) {
      std::vector<std::string> pieces(1);
      for (size_t i = 0; i < c.text.size(); ++i) {
        pieces.back().push_back(c.text[i]);
        if (i < gaps && (cuts >> i & 1)) pieces.emplace_back();
      }
      ASSERT_EQ(Feed(pieces, c.stop), whole) << c.text << " cut " << cuts;
    }
  }
}

TEST(StopScanner, RandomTextsOfTwoLetters) {
  std::mt19937 bits(3);
  for (int round = 0; round < 20000; ++round) {
    const auto word = [&](size_t least, size_t most) {
      std::string text(least + bits() % (most - least + 1), 'a');
      for (char& c : text) c = static_cast<char>('a' + bits() % 2);
      return text;
    };
    std::vector<std::string> stop, pieces;
    for (size_t i = bits() % 4; i-- > 0;) stop.push_back(word(2, 7));
    std::string text;
    for (int i = 0; i < 8; ++i) text += pieces.emplace_back(word(0, 4));
    ASSERT_EQ(Feed(pieces, stop), Naive(text, stop));
  }
}

TEST(StopScanner, OnlyWholeCharactersAreShown) {
  // "\u00e8" and "\u00e9" share their first byte: no half of a character may be held.
  StopScanner scanner({"\u00e8\u00e8"});
  EXPECT_EQ(scanner.Push("a\u00e9"), "a\u00e9");
  EXPECT_EQ(scanner.Push("\u00e8"), "");
  EXPECT_EQ(scanner.Push("\u00e9"), "\u00e8\u00e9");
}

TEST(StopScanner, AMatchThatDoesNotCountMayBePartOfOneThatDoes) {
  StopScanner scanner({"ab", "abab"});
  EXPECT_EQ(scanner.Push("xab", false), "x");  // "ab" may still become "abab"
  EXPECT_FALSE(scanner.matched());
  EXPECT_EQ(scanner.Push("a"), "");
  EXPECT_EQ(scanner.Push("b"), "");
  EXPECT_EQ(scanner.match(), "abab");
  EXPECT_EQ(scanner.Finish(), "");

  StopScanner early({"ab"});
  EXPECT_EQ(early.Push("ab", false), "ab");
  EXPECT_EQ(early.Push("a", false), "");
  EXPECT_EQ(early.Push("b"), "");  // begins where it did not count, ends where it does
  EXPECT_TRUE(early.matched());
}

TEST(StopScanner, ValidationNamesFieldWantedAndGot) {
  EXPECT_TRUE(ValidateStopStrings({}).ok());
  EXPECT_TRUE(ValidateStopStrings(std::vector<std::string>(16, "a")).ok());
  const auto refusal = [](const std::vector<std::string>& stop) {
    const Status status = ValidateStopStrings(stop);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return StatusMessage(status);
  };
  EXPECT_THAT(refusal({"a", ""}), HasSubstr("stop[1]: wanted 1 to 1024 bytes, got 0"));
  EXPECT_THAT(refusal({std::string(1025, 'a')}), HasSubstr("stop[0]: wanted 1 to 1024 bytes, got 1025"));
  EXPECT_THAT(refusal(std::vector<std::string>(17, "a")),
              HasSubstr("stop: wanted at most 16 strings, got 17"));
}

}  // namespace
}  // namespace cachalot
