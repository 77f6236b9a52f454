#include "router/output_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/oracle.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

const Tokenizer& DemoTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::Load(DemoDirectory() + "/tokenizer.json");
  return *tokenizer;
}

struct Seen {
  std::string text, stop;
  size_t tokens = 0;
};

Seen Show(const std::vector<int32_t>& ids, const std::vector<std::string>& stop, int min_tokens = 0) {
  OutputText output(&DemoTokenizer(), stop, min_tokens);
  Seen seen;
  for (size_t i = 0; i < ids.size() && !output.stopped(); ++i) {
    seen.text += output.Push(ids[i]);
    ++seen.tokens;
  }
  seen.text += output.Finish();
  seen.stop = output.matched_stop();
  return seen;
}

TEST(OutputText, StopsAcrossTokensAtEveryPlaceOfAText) {
  const std::string text = "In the beginning é漢字 🐳 created. The LORD is my shepherd";
  const auto ids = *DemoTokenizer().Encode(text, false);
  ASSERT_GT(ids.size(), 10u);
  // Every substring of whole characters: its first occurrence ends the text.
  for (size_t from = 0; from < text.size(); ++from) {
    if ((text[from] & 0xC0) == 0x80) continue;
    for (size_t bytes = 1; bytes <= 12 && from + bytes <= text.size(); ++bytes) {
      if (from + bytes < text.size() && (text[from + bytes] & 0xC0) == 0x80) continue;
      const std::string stop = text.substr(from, bytes);
      const Seen seen = Show(ids, {"not there", stop, "zzz"});
      ASSERT_EQ(seen.text, text.substr(0, text.find(stop))) << stop;
      ASSERT_EQ(seen.stop, stop);
      // The last token is the one that completes it.
      const auto decoded = [&](size_t count) {
        return DecodeText(DemoTokenizer(), std::span(ids).first(count), SpecialTokens::kSkip);
      };
      ASSERT_NE(decoded(seen.tokens).find(stop), std::string::npos);
      ASSERT_EQ(decoded(seen.tokens - 1).find(stop), std::string::npos);
    }
  }
  EXPECT_EQ(Show(ids, {"not there"}).text, text);
  EXPECT_EQ(Show(ids, {}).tokens, ids.size());
}

TEST(OutputText, MinTokensLetsEarlyMatchesPass) {
  const auto ids = *DemoTokenizer().Encode("The LORD is my shepherd; the LORD is", false);
  const size_t early = Show(ids, {"LORD"}).tokens;
  const Seen late = Show(ids, {"LORD"}, static_cast<int>(early));
  EXPECT_EQ(late.text, "The LORD is my shepherd; the ");
  EXPECT_EQ(Show(ids, {"LORD"}, static_cast<int>(early) - 1).text, "The ");
  EXPECT_EQ(Show(ids, {"LORD"}, 1000).text, "The LORD is my shepherd; the LORD is");
}

TEST(OutputText, WithoutATokenizerTokensAreCounted) {
  OutputText output(nullptr, {}, 0);
  EXPECT_EQ(output.Push(5), "");
  EXPECT_EQ(output.Finish(), "");
  EXPECT_EQ(output.tokens(), 1);
  EXPECT_FALSE(output.has_text());
}

TEST(OutputText, ValidationNamesFieldWantedAndGot) {
  EXPECT_TRUE(ValidateOutputOptions({}, false).ok());
  EXPECT_TRUE(ValidateOutputOptions({64, {"a"}}, true).ok());
  EXPECT_THAT(StatusMessage(ValidateOutputOptions({0, {}}, true)), HasSubstr("n: wanted 1 to 64, got 0"));
  EXPECT_THAT(StatusMessage(ValidateOutputOptions({65, {}}, true)), HasSubstr("n: wanted 1 to 64, got 65"));
  EXPECT_THAT(StatusMessage(ValidateOutputOptions({1, {""}}, true)), HasSubstr("stop[0]"));
  EXPECT_EQ(ValidateOutputOptions({1, {"a"}}, false).code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace cachalot::testing
