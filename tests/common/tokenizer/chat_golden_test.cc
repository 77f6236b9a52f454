// The released encoder's four golden pairs, which are not part of this repository: looked for beside it.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/tokenizer/chat_output.h"
#include "common/tokenizer/chat_request.h"
#include "tests/common/tokenizer/chat_texts.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

const std::string kDirectory = CACHALOT_SOURCE_DIR "/../shared/encoding-golden";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

class ChatGoldenTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(kDirectory)) GTEST_SKIP() << kDirectory << " does not exist";
    // The tools template as the encoder has it, recovered from a prompt that it made. Its hash proves it.
    const std::string output = Output(1);
    const size_t begin = output.find("## Tools"), end = output.find("<｜User｜>");
    std::string tools = output.substr(begin, end - begin);
    const size_t schemas = tools.find("{\"name\""), after = tools.rfind("\n\n");
    tools = tools.substr(0, schemas) + "{tool_schemas}" + tools.substr(after);
    tools = Replaced(tools, "｜DSML｜", "{dsml_token}");
    tools = Replaced(tools, "</think>", "{thinking_end_token}");
    tools = Replaced(tools, "<think>", "{thinking_start_token}");
    const fs::path model = fs::path(testing::TempDir()) / "chat_golden_model";
    fs::create_directories(model / "encoding");
    std::ofstream(model / kChatEncodingFile)
        << "\"\"\"TOOLS_TEMPLATE = 'not this one'\"\"\"\nREASONING_EFFORT_MAX = ''\nTOOLS_TEMPLATE = \"\"\""
        << tools << "\"\"\"\n";
    StatusOr<ChatEncoding> encoding = ChatEncoding::Load(model, Sha256Hex);
    ASSERT_TRUE(encoding.ok()) << StatusMessage(encoding.status());
    encoding_ = std::make_unique<ChatEncoding>(std::move(*encoding));
    fs::remove_all(model);
  }

  static std::string Output(int number) {
    return ReadFile(kDirectory + "/test_output_" + std::to_string(number) + ".txt");
  }

  static StatusOr<ChatRequest> Request(int number) {
    const std::string input = ReadFile(kDirectory + "/test_input_" + std::to_string(number) + ".json");
    ChatOptions options;
    options.thinking = number != 4;
    return ParseChatRequest(input[0] == '[' ? "{\"messages\": " + input + "}" : input, options);
  }

  std::unique_ptr<ChatEncoding> encoding_;
};

TEST_F(ChatGoldenTest, AllPairsByteForByte) {
  for (int number = 1; number <= 4; ++number) {
    const auto request = Request(number);
    ASSERT_TRUE(request.ok()) << StatusMessage(request.status());
    const auto prompt = RenderChat(*encoding_, request->messages, request->options);
    ASSERT_TRUE(prompt.ok()) << StatusMessage(prompt.status());
    EXPECT_EQ(prompt->AsText(), Output(number)) << number;
    // None of these conversations has the text of a special token outside its place.
    const auto tokenizer = TokenizerWithMarks();
    EXPECT_EQ(*EncodePrompt(*tokenizer, *prompt), *tokenizer->Encode(Output(number), /*parse_special=*/true));
  }
}

TEST_F(ChatGoldenTest, AnswersInThemParseBack) {
  const std::string output = Output(1), end = "<｜end▁of▁sentence｜>", begin = "<｜Assistant｜><think>";
  const size_t first = output.find(begin) + begin.size();
  const ChatOutput answer =
      ParseChatOutput(output.substr(first, output.find(end, first) + end.size() - first), true);
  const ChatMessage expected = Request(1)->messages[2];
  EXPECT_EQ(answer.reasoning, expected.reasoning);
  EXPECT_EQ(answer.content, "");
  ASSERT_EQ(answer.tool_calls.size(), 1u);
  EXPECT_EQ(answer.tool_calls[0].name, expected.tool_calls[0].name);
  EXPECT_EQ(answer.tool_calls[0].arguments, expected.tool_calls[0].arguments);
  EXPECT_EQ(answer.malformed, "");
}

}  // namespace
}  // namespace cachalot
