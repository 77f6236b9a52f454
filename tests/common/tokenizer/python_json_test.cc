#include "common/tokenizer/python_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/common/tokenizer/test_tokenizers.h"

namespace cachalot {
namespace {

std::string RoundTrip(std::string_view text) {
  const auto value = PythonJson::Parse(text);
  return value.ok() ? value->Dump() : "refused: " + StatusMessage(value.status());
}

TEST(PythonJsonTest, NumbersAsPythonPrintsThem) {
  // [text, json.dumps(json.loads(text))] from CPython 3.11.
  const nlohmann::json cases = ReadJson(CACHALOT_SOURCE_DIR "/tests/golden/tokenizer/python_numbers.json");
  ASSERT_GT(cases.size(), 80u);
  for (const nlohmann::json& test : cases) {
    EXPECT_EQ(RoundTrip(test[0].get<std::string>()), test[1]) << test[0];
  }
}

TEST(PythonJsonTest, KeepsTheOrderOfKeysAndPythonsSeparators) {
  EXPECT_EQ(RoundTrip(" {\"b\":1,\"a\" : [ ] ,\"c\":{},\n\"d\":[1,{\"x\":null}],\"e\":true}\t"),
            "{\"b\": 1, \"a\": [], \"c\": {}, \"d\": [1, {\"x\": null}], \"e\": true}");
  EXPECT_EQ(RoundTrip("{\"a\":1,\"b\":2,\"a\":3}"), "{\"a\": 3, \"b\": 2}");
}

TEST(PythonJsonTest, Strings) {
  EXPECT_EQ(RoundTrip("\"\\u00e9\\/\\ud83d\\ude00\\u2028\""), "\"é/😀\u2028\"");
  EXPECT_EQ(RoundTrip("\"\\b\\f\\n\\r\\t\\\\\\\"\\u0000\\u001f\\u007f\""),
            "\"\\b\\f\\n\\r\\t\\\\\\\"\\u0000\\u001f\x7f\"");
}

TEST(PythonJsonTest, Refusals) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[1,]",
                           "{\"a\":1,}",
                           "{a:1}",
                           "'a'",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "-",
                           "1e",
                           "nul",
                           "[1 2]",
                           "{\"a\" 1}",
                           "\"a",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"a\nb\"",
                           "1 2",
                           "]",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\u0041\"",
                           "\xEF\xBB\xBF"
                           "1",
                           "\"\xFF\""}) {
    EXPECT_EQ(PythonJson::Parse(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
  EXPECT_THAT(RoundTrip("[1, x]"), testing::HasSubstr("byte 4"));
  EXPECT_TRUE(PythonJson::Parse(std::string(400, '[') + std::string(400, ']')).ok());
  EXPECT_FALSE(PythonJson::Parse(std::string(100'000, '[')).ok());
  EXPECT_TRUE(PythonJson::Parse(std::string(4300, '1')).ok());
  EXPECT_FALSE(PythonJson::Parse(std::string(4301, '1')).ok());
}

TEST(PythonJsonTest, Truth) {
  for (const char* text : {"null", "false", "0", "-0", "0.0", "-0.0", "\"\"", "[]", "{}"}) {
    EXPECT_FALSE(PythonJson::Parse(text)->truthy()) << text;
  }
  for (const char* text : {"true", "1", "0.5", "NaN", "\"0\"", "[null]", "{\"a\": null}"}) {
    EXPECT_TRUE(PythonJson::Parse(text)->truthy()) << text;
  }
}

}  // namespace
}  // namespace cachalot
