// Streaming text out of tokens that end anywhere inside characters.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "common/tokenizer/stream_decoder.h"
#include "tests/common/tokenizer/test_tokenizers.h"

namespace cachalot {
namespace {

std::string Repaired(const std::vector<std::string_view>& parts) {
  Utf8Repair repair;
  std::string all;
  for (const std::string_view part : parts) {
    std::string text;
    repair.Append(part, &text);
    EXPECT_EQ(FindInvalidUtf8(text), std::string_view::npos);
    all += text;
  }
  repair.Finish(&all);
  EXPECT_FALSE(repair.pending());
  return all;
}

/// The token of each byte.
std::vector<int32_t> ByteTokens(std::string_view bytes) {
  std::vector<int32_t> ids;
  for (const char byte : bytes) ids.push_back(*DemoTokenizer().TokenId(std::string(1, byte)));
  return ids;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

TEST(Utf8RepairTest, EqualsPythonForEveryCut) {
  const nlohmann::json cases = ReadJson(CACHALOT_SOURCE_DIR "/tests/golden/tokenizer/cases.json")["utf8"];
  ASSERT_EQ(cases.size(), 38u);
  for (const nlohmann::json& test : cases) {
    const std::string bytes = FromHex(test["hex"]), expected = test["text"];
    EXPECT_EQ(FindInvalidUtf8(bytes) == std::string_view::npos, bytes == expected) << test["hex"];
    const std::string_view view = bytes;
    for (size_t i = 0; i <= bytes.size(); ++i) {
      for (size_t j = i; j <= bytes.size(); ++j) {
        EXPECT_EQ(Repaired({view.substr(0, i), view.substr(i, j - i), view.substr(j)}), expected)
            << test["hex"];
      }
    }
  }
}

TEST(StreamDecoderTest, HoldsBackUnfinishedCharacters) {
  StreamDecoder decoder(&DemoTokenizer());
  std::vector<std::string> shown;
  for (const int32_t id : ByteTokens("aé€😀")) shown.push_back(decoder.Push(id));
  EXPECT_THAT(shown, testing::ElementsAre("a", "", "é", "", "", "€", "", "", "", "😀"));
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoderTest, FinishFlushesAndStartsAnew) {
  StreamDecoder decoder(&DemoTokenizer());
  for (const int32_t id : ByteTokens("\xF0\x9F\x98")) EXPECT_EQ(decoder.Push(id), "");
  EXPECT_TRUE(decoder.pending());
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Push(*DemoTokenizer().TokenId("a")), "a");
}

TEST(StreamDecoderTest, TokensThatStraddleCharacters) {
  // One token ends inside the first character, the next one begins there and ends inside the second.
  const std::string text = "日本";
  const auto spelling = [&](size_t from, size_t count) {
    std::string symbols;
    for (const char byte : text.substr(from, count))
      symbols += AlphabetSymbol(static_cast<unsigned char>(byte));
    return symbols;
  };
  for (size_t cut = 1; cut < text.size(); ++cut) {
    std::vector<std::pair<std::string, std::string>> merges;
    for (size_t i = 1; i < cut; ++i) merges.emplace_back(spelling(0, i), spelling(i, 1));
    for (size_t i = cut + 1; i < text.size(); ++i)
      merges.emplace_back(spelling(cut, i - cut), spelling(i, 1));
    const auto tokenizer = Made(SmallTokenizer(merges));
    const std::vector<int32_t> ids = {*tokenizer->TokenId(text.substr(0, cut)),
                                      *tokenizer->TokenId(text.substr(cut))};
    StreamDecoder decoder(tokenizer.get());
    const std::string first = decoder.Push(ids[0]), second = decoder.Push(ids[1]);
    EXPECT_EQ(first, cut < 3 ? "" : "日");
    EXPECT_EQ(first + second, text);
    EXPECT_EQ(decoder.Finish(), "");
  }
}

TEST(StreamDecoderTest, SpecialTokensAreSkippedOrShown) {
  const Tokenizer& demo = DemoTokenizer();
  const std::vector<int32_t> ids = *demo.Encode("<｜Assistant｜></think>In the<｜end▁of▁sentence｜>", true);
  EXPECT_EQ(DecodeText(demo, ids), "In the");
  EXPECT_EQ(DecodeText(demo, ids, SpecialTokens::kShow),
            "<｜Assistant｜></think>In the<｜end▁of▁sentence｜>");
  // A skipped token does not break the character around it; a shown one does.
  std::vector<int32_t> around = ByteTokens("\xC3\xA9");
  around.insert(around.begin() + 1, *demo.TokenId("</think>"));
  EXPECT_EQ(DecodeText(demo, around), "é");
  EXPECT_EQ(DecodeText(demo, around, SpecialTokens::kShow), "\uFFFD</think>\uFFFD");
}

TEST(StreamDecoderTest, IdsWithoutATokenAddNothing) {
  EXPECT_EQ(DecodeText(DemoTokenizer(), std::vector<int32_t>{-1, 4096, *DemoTokenizer().TokenId("a")}), "a");
}

TEST(StreamDecoderTest, PartsTogetherAreTheWholeForRandomTokens) {
  const Tokenizer& demo = DemoTokenizer();
  std::mt19937 random(7);
  for (int round = 0; round < 500; ++round) {
    std::vector<int32_t> ids;
    std::string bytes;
    for (int i = 0; i < 40; ++i) {
      // Half of them single high bytes, so that valid and invalid sequences both happen.
      const std::string high(1, static_cast<char>(0x80 + random() % 0x80));
      ids.push_back(random() % 2 ? *demo.TokenId(high) : static_cast<int32_t>(random() % 4096));
      if (!demo.IsSpecial(ids.back())) bytes += demo.TokenBytes(ids.back());
    }
    StreamDecoder decoder(&demo);
    std::string shown;
    for (const int32_t id : ids) {
      const std::string part = decoder.Push(id);
      ASSERT_EQ(FindInvalidUtf8(part), std::string_view::npos);
      shown += part;
    }
    ASSERT_EQ(shown + decoder.Finish(), Repaired({bytes}));
  }
}

}  // namespace
}  // namespace cachalot
