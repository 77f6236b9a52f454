// Text to ids with the demo tokenizer: reference ids from HF tokenizers, round trips, special texts, bad
// input.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "tests/common/tokenizer/test_tokenizers.h"

namespace cachalot {
namespace {

TEST(EncodeTest, EqualsHfTokenizers) {
  // Made with HF tokenizers 0.23.3, encode(text, add_special_tokens=False); "special": false with
  // added_tokens removed.
  const nlohmann::json cases = ReadJson(CACHALOT_SOURCE_DIR "/tests/golden/tokenizer/cases.json")["encode"];
  ASSERT_GT(cases.size(), 180u);
  for (const nlohmann::json& test : cases) {
    const std::string text = test["text"];
    const auto ids = DemoTokenizer().Encode(text, test["special"]);
    ASSERT_TRUE(ids.ok()) << StatusMessage(ids.status());
    EXPECT_EQ(*ids, test["ids"].get<std::vector<int32_t>>()) << test.dump(-1, ' ', true);
    EXPECT_EQ(DemoTokenizer().DecodeRaw(*ids), text);
  }
}

TEST(EncodeTest, EveryVerseSurvivesTheRoundTrip) {
  gzFile file = gzopen(CACHALOT_SOURCE_DIR "/models/demo/verses.tsv.gz", "rb");
  ASSERT_NE(file, nullptr);
  char line[4096];
  int verses = 0;
  size_t bytes = 0, tokens = 0;
  while (gzgets(file, line, sizeof(line)) != nullptr) {
    std::string text = std::string(line).substr(std::string_view(line).find('\t') + 1);
    text.pop_back();
    const auto ids = DemoTokenizer().Encode(text, true);
    ASSERT_TRUE(ids.ok()) << StatusMessage(ids.status());
    ASSERT_EQ(DemoTokenizer().DecodeRaw(*ids), text);
    ++verses;
    bytes += text.size();
    tokens += ids->size();
  }
  gzclose(file);
  EXPECT_EQ(verses, 9120);
  EXPECT_GT(bytes, 3 * tokens);  // it does merge
}

TEST(EncodeTest, SpecialTextIsPlainUnlessAskedFor) {
  const Tokenizer& demo = DemoTokenizer();
  const std::string text = "a<｜User｜>b</think><｜end▁of▁sentence｜>";
  const std::vector<int32_t> plain = *demo.Encode(text, false), parsed = *demo.Encode(text, true);
  for (const int32_t id : plain) EXPECT_FALSE(demo.IsAdded(id));
  EXPECT_EQ(demo.DecodeRaw(plain), text);
  EXPECT_THAT(parsed,
              testing::ElementsAre(*demo.TokenId("a"), *demo.TokenId("<｜User｜>"), *demo.TokenId("b"),
                                   *demo.TokenId("</think>"), *demo.TokenId("<｜end▁of▁sentence｜>")));
}

TEST(EncodeTest, TheLongestSpecialTokenOfTheLeftmostWins) {
  const auto tokenizer = Made(SmallTokenizer({}));
  const int32_t s = *tokenizer->TokenId("<s>"), sx = *tokenizer->TokenId("<sx>");
  EXPECT_THAT(*tokenizer->Encode("<s><sx><s", true), testing::ElementsAre(s, sx, '<', 's'));
  EXPECT_THAT(*tokenizer->Encode("<<s>", true), testing::ElementsAre('<', s));
  nlohmann::json nested = SmallTokenizer({});
  nested["added_tokens"][1]["content"] = "<s><s>";
  EXPECT_THAT(*Made(nested)->Encode("<s><s><s>", true), testing::ElementsAre(sx, s));
  // A token marked `normalized` is looked for only in what the others leave.
  nested["added_tokens"][1]["normalized"] = true;
  EXPECT_THAT(*Made(nested)->Encode("<s><s><s>", true), testing::ElementsAre(s, s, s));
}

TEST(EncodeTest, InvalidUtf8IsRefusedWithItsOffset) {
  const std::pair<std::string, std::string> cases[] = {
      {"\x80", "byte 0"},         {"ab\xFF", "byte 2"},     {"é\xC3", "byte 2"},
      {"\xED\xA0\x80", "byte 0"}, {"日\xE6\x97", "byte 3"}, {"x\xF4\x90\x80\x80", "byte 1"},
      {"\xC0\xAF", "byte 0"}};
  for (const auto& [text, where] : cases) {
    for (const bool parse_special : {false, true}) {
      const auto ids = DemoTokenizer().Encode(text, parse_special);
      ASSERT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(StatusMessage(ids.status()), testing::HasSubstr("not valid UTF-8 at " + where));
    }
  }
}

TEST(EncodeTest, EmptyAndTooLong) {
  EXPECT_THAT(*DemoTokenizer().Encode("", true), testing::IsEmpty());
  const auto ids = DemoTokenizer().Encode(std::string((size_t{64} << 20) + 1, ' '), false);
  EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
}

TEST(EncodeTest, LongRunsOfWhiteSpaceAndSymbolsFinish) {
  for (const char* unit : {" ", "\n", " \n", "<｜", "\x01", "字", "9", "!\n"}) {
    std::string text;
    while (text.size() < 500'000) text += unit;
    EXPECT_EQ(DemoTokenizer().DecodeRaw(*DemoTokenizer().Encode(text, true)), text);
  }
}

TEST(EncodeTest, Lookups) {
  const Tokenizer& demo = DemoTokenizer();
  EXPECT_EQ(demo.vocab_size(), 4096);
  const int32_t user = *demo.TokenId("<｜User｜>");
  EXPECT_EQ(demo.TokenBytes(user), "<｜User｜>");
  EXPECT_TRUE(demo.IsSpecial(user) && demo.IsAdded(user));
  const int32_t the = *demo.TokenId(" the");
  EXPECT_EQ(demo.TokenBytes(the), " the");
  EXPECT_FALSE(demo.IsSpecial(the) || demo.IsAdded(the));
  EXPECT_EQ(demo.TokenId("no such token"), std::nullopt);
  for (const int32_t outside : {-1, 4096, 1 << 30}) {
    EXPECT_EQ(demo.TokenBytes(outside), "");
    EXPECT_FALSE(demo.IsSpecial(outside) || demo.IsAdded(outside));
  }
  for (int byte = 0; byte < 256; ++byte) EXPECT_TRUE(demo.TokenId(std::string(1, static_cast<char>(byte))));
}

}  // namespace
}  // namespace cachalot
