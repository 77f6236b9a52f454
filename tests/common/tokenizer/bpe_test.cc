// Merge order on small made-up vocabularies, and against a plain quadratic BPE.

#include "common/tokenizer/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/common/tokenizer/test_tokenizers.h"

namespace cachalot {
namespace {

using Merges = std::vector<std::pair<std::string, std::string>>;

std::vector<std::string> Tokens(const Tokenizer& tokenizer, std::string_view text,
                                bool parse_special = false) {
  const StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, parse_special);
  CHECK_MSG(ids.ok(), StatusMessage(ids.status()));
  std::vector<std::string> tokens;
  for (const int32_t id : *ids) tokens.emplace_back(tokenizer.TokenBytes(id));
  return tokens;
}

TEST(BpeTest, EqualRanksMergeFromTheLeft) {
  const auto tokenizer = Made(SmallTokenizer({{"a", "a"}}));
  EXPECT_THAT(Tokens(*tokenizer, "aaa"), testing::ElementsAre("aa", "a"));
  EXPECT_THAT(Tokens(*tokenizer, "aaaaa"), testing::ElementsAre("aa", "aa", "a"));
}

TEST(BpeTest, LowerRankWinsOverPosition) {
  EXPECT_THAT(Tokens(*Made(SmallTokenizer({{"b", "c"}, {"a", "b"}})), "abc"),
              testing::ElementsAre("a", "bc"));
  EXPECT_THAT(Tokens(*Made(SmallTokenizer({{"a", "b"}, {"b", "c"}})), "abc"),
              testing::ElementsAre("ab", "c"));
}

TEST(BpeTest, NewPairsCompeteWithOldOnes) {
  // "ab" + "ab" has a better rank than the c's that have waited since the start.
  const auto tokenizer = Made(SmallTokenizer({{"a", "b"}, {"ab", "ab"}, {"b", "c"}, {"abab", "c"}}));
  EXPECT_THAT(Tokens(*tokenizer, "ababc"), testing::ElementsAre("ababc"));
  EXPECT_THAT(Tokens(*tokenizer, "bcab"), testing::ElementsAre("bc", "ab"));
}

TEST(BpeTest, WaysToOneTokenAndRepeatedMerges) {
  // "abc" by two ways; ("a", "b") has the rank of its last mention.
  const auto tokenizer = Made(SmallTokenizer({{"a", "b"}, {"b", "c"}, {"a", "bc"}, {"ab", "c"}, {"a", "b"}}));
  EXPECT_THAT(Tokens(*tokenizer, "abc"), testing::ElementsAre("abc"));
  EXPECT_THAT(Tokens(*tokenizer, "ab"), testing::ElementsAre("ab"));
}

TEST(BpeTest, MergesAsStringsMeanTheSame) {
  nlohmann::json json = SmallTokenizer({{"a", "b"}, {"b", "c"}, {"Ġ", "ab"}});
  nlohmann::json strings = json;
  strings["model"]["merges"] = {"a b", "b c", "Ġ ab"};
  for (const char* text : {"abc", "ab", "bc", " ab abc"}) {
    EXPECT_EQ(*Made(json)->Encode(text, false), *Made(strings)->Encode(text, false)) << text;
  }
}

TEST(BpeTest, NothingMergesAcrossPieces) {
  const auto tokenizer = Made(SmallTokenizer({{"a", "!"}, {"Ġ", "a"}}));
  EXPECT_THAT(Tokens(*tokenizer, "a! a"), testing::ElementsAre("a", "!", " ", "a"));
}

/// The definition: look for the best pair anywhere, merge its leftmost place, start again.
std::vector<std::string> PlainBpe(const Merges& merges, const std::string& piece) {
  std::map<std::pair<std::string, std::string>, size_t> rank;
  for (size_t i = 0; i < merges.size(); ++i) rank[merges[i]] = i;
  std::vector<std::string> symbols;
  for (const char c : piece) symbols.emplace_back(1, c);
  while (true) {
    size_t best = merges.size(), where = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto it = rank.find({symbols[i], symbols[i + 1]});
      if (it != rank.end() && it->second < best) best = it->second, where = i;
    }
    if (best == merges.size()) return symbols;
    symbols[where] += symbols[where + 1];
    symbols.erase(symbols.begin() + where + 1);
  }
}

TEST(BpeTest, EqualsPlainBpeOnRandomVocabularies) {
  std::mt19937 random(20240601);
  for (int round = 0; round < 100; ++round) {
    std::vector<std::string> known = {"a", "b", "c"};
    Merges merges;
    for (int i = 0; i < 30; ++i) {
      const std::string left = known[random() % known.size()], right = known[random() % known.size()];
      if (left.size() + right.size() > 8) continue;
      merges.emplace_back(left, right);
      known.push_back(left + right);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const auto tokenizer = Made(SmallTokenizer(merges));
    for (int i = 0; i < 20; ++i) {
      std::string text(random() % 60, 'a');
      for (char& c : text) c = static_cast<char>('a' + random() % 3);
      ASSERT_EQ(Tokens(*tokenizer, text), PlainBpe(merges, text)) << text;
    }
  }
}

TEST(BpeTest, AMegabyteOfOneLetterFinishes) {
  std::string power = "a";
  Merges merges;
  for (int i = 0; i < 10; ++i) {
    merges.emplace_back(power, power);
    power += power;
  }
  const auto small = Made(SmallTokenizer(merges));
  const std::string text(1'000'000, 'a');
  const std::vector<int32_t> ids = *small->Encode(text, false);
  EXPECT_EQ(small->DecodeRaw(ids), text);
  EXPECT_EQ(ids.size(), 1'000'000 / 1024 + 2u);  // 976 times 1024, then 512 and 64
  EXPECT_EQ(DemoTokenizer().DecodeRaw(*DemoTokenizer().Encode(text, false)), text);
}

}  // namespace
}  // namespace cachalot
