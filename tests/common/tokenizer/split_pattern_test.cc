// Oniguruma's meaning of patterns: what is translated, what is refused.

#include "common/tokenizer/split_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/check.h"

namespace cachalot {
namespace {

using testing::ElementsAre;

std::vector<std::string_view> Pieces(std::string_view pattern, std::string_view text) {
  const StatusOr<SplitPattern> split = SplitPattern::Compile(pattern);
  CHECK_MSG(split.ok(), StatusMessage(split.status()));
  std::vector<std::string_view> pieces;
  const std::string_view texts[] = {text};
  CHECK(split->Split(texts, &pieces).ok());
  return pieces;
}

TEST(SplitPatternTest, MatchesAndGapsInOrder) {
  EXPECT_THAT(Pieces("\\p{N}{1,3}", "a1234b"), ElementsAre("a", "123", "4", "b"));
  EXPECT_THAT(Pieces("\\p{N}{1,3}", "ab"), ElementsAre("ab"));
  EXPECT_THAT(Pieces("\\p{N}{1,3}", "12"), ElementsAre("12"));
  EXPECT_THAT(Pieces("\\s+(?!\\S)|\\s+", "a   b  "), ElementsAre("a", "  ", " ", "b", "  "));
  EXPECT_THAT(Pieces("a|b", ""), ElementsAre());
}

TEST(SplitPatternTest, EachTextIsASubjectOfItsOwn) {
  const StatusOr<SplitPattern> split = SplitPattern::Compile("\\s+(?!\\S)");
  ASSERT_TRUE(split.ok());
  const std::string_view texts[] = {"a  ", "b"};
  std::vector<std::string_view> pieces;
  ASSERT_TRUE(split->Split(texts, &pieces).ok());
  EXPECT_THAT(pieces, ElementsAre("a", "  ", "b"));
}

TEST(SplitPatternTest, WhiteSpaceIsUnicodeWhiteSpace) {
  for (const char* space : {"\t", "\n", "\v", "\f", "\r", " ", "\u0085", "\u00A0", "\u1680", "\u2000",
                            "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"}) {
    EXPECT_THAT(Pieces("[\\s]+", "a" + std::string(space) + "b"), ElementsAre("a", space, "b"));
  }
  for (const char* other : {"\u180E", "\u200B", "\u2060", "\uFEFF", "\x1C"}) {
    EXPECT_THAT(Pieces("\\S+", other), ElementsAre(other));
    EXPECT_THAT(Pieces("\\s", "a" + std::string(other)).size(), 1u);
  }
}

TEST(SplitPatternTest, CharactersNewerThanTheLibrary) {
  // U+31350 (letter) is of Unicode 15, U+10D40 (digit) and U+1CC00 (symbol) of 16.
  EXPECT_THAT(Pieces("\\p{L}+", "!\U00031350a!"), ElementsAre("!", "\U00031350a", "!"));
  EXPECT_THAT(Pieces("[^\\p{L}]+", "!\U00031350a!"), ElementsAre("!", "\U00031350a", "!"));
  EXPECT_THAT(Pieces("\\P{L}+", "!\U00031350a!"), ElementsAre("!", "\U00031350a", "!"));
  EXPECT_THAT(Pieces("\\p{N}", "\U00010D40\U00010D40"), ElementsAre("\U00010D40", "\U00010D40"));
  EXPECT_THAT(Pieces("[\\p{P}\\p{S}]+", "a\U0001CC00!"), ElementsAre("a", "\U0001CC00!"));
}

TEST(SplitPatternTest, Escapes) {
  EXPECT_THAT(Pieces("\\u4e00|\\x{1F600}", "a一😀"), ElementsAre("a", "一", "😀"));
  EXPECT_THAT(Pieces("[\\[\\]\\\\^\\-]+", "a[]\\^-b"), ElementsAre("a", "[]\\^-", "b"));
  EXPECT_THAT(Pieces("]}", "a]}"), ElementsAre("a", "]}"));
  EXPECT_THAT(Pieces("\\p{^L}+", "a12b"), ElementsAre("a", "12", "b"));
}

TEST(SplitPatternTest, WhatTheEnginesReadDifferentlyIsRefused) {
  for (const char* pattern :
       {"a.b",       "^a",    "a$",      "\\w+",     "\\d",    "\\h",     "\\R",         "\\X",
        "\\b",       "\\1",   "\\v",     "\\Qa\\E",  "(?i:a)", "(?<=a)b", "(?>a)",       "(*UTF)a",
        "a{,3}",     "a{2}+", "a{2}?",   "a{",       "{2",     "[a[b]]",  "[[:alpha:]]", "[a&&b]",
        "[]a]",      "[a",    "\\p{Lu}", "\\p{Han}", "\\pL",   "\\p",     "\\p{L",       "[\\P{L}]",
        "[\\p{^L}]", "\\x41", "\\x{zz}", "\\u12",    "a\\"}) {
    const StatusOr<SplitPattern> split = SplitPattern::Compile(pattern);
    EXPECT_EQ(split.status().code(), StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(StatusMessage(split.status()), testing::HasSubstr("at byte")) << pattern;
  }
  for (const char* pattern : {"(a", "a)", "*a", "[z-a]", "a{3,2}"}) {
    EXPECT_THAT(StatusMessage(SplitPattern::Compile(pattern).status()),
                testing::HasSubstr("does not compile"));
  }
  for (const char* pattern : {"", "a*", "a?|b", "(?=a)"}) {
    EXPECT_THAT(StatusMessage(SplitPattern::Compile(pattern).status()),
                testing::HasSubstr("can match nothing"));
  }
}

}  // namespace
}  // namespace cachalot
