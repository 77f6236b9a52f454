// OpenAI-like bodies: fields, defaults, and errors that name the field.

#include "common/tokenizer/chat_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/common/tokenizer/chat_texts.h"

namespace cachalot {
namespace {

using testing::HasSubstr;

std::string Rendered(const std::string& body, const ChatOptions& defaults = {}) {
  const auto request = ParseChatRequest(body, defaults);
  if (!request.ok()) return "refused: " + StatusMessage(request.status());
  const auto prompt = RenderChat(MadeUpEncoding("leveled"), request->messages, request->options);
  return prompt.ok() ? prompt->AsText() : "refused: " + StatusMessage(prompt.status());
}

const std::string kUser = R"("messages": [{"role": "user", "content": "a"}])";
const std::string kAsked = "<｜User｜>a<｜Assistant｜>", kBegin = "<｜begin▁of▁sentence｜>";

TEST(ChatRequestTest, SwitchesOfThinking) {
  const std::string off = kBegin + kAsked + "</think>", on = kBegin + kAsked + "<think>";
  EXPECT_EQ(Rendered("{" + kUser + "}"), off);
  EXPECT_EQ(Rendered("{" + kUser + "}", {.thinking = true}), on);
  for (const char* field : {R"("thinking": true)", R"("thinking": {"type": "enabled"})",
                            R"("chat_template_kwargs": {"thinking": true})",
                            R"("chat_template_kwargs": {"enable_thinking": true})"}) {
    EXPECT_EQ(Rendered("{" + kUser + ", " + field + "}"), on) << field;
  }
  for (const char* field : {R"("thinking": false)", R"("thinking": {"type": "disabled"})",
                            R"("chat_template_kwargs": {"thinking": false})"}) {
    EXPECT_EQ(Rendered("{" + kUser + ", " + field + "}", {.thinking = true}), off) << field;
  }
  EXPECT_EQ(Rendered("{" + kUser + R"(, "reasoning_effort": "high", "thinking": true})"),
            kBegin + "abs effort\n\n" + kAsked + "<think>");
}

TEST(ChatRequestTest, ToolsAndSchemaGoToTheFirstMessage) {
  const std::string tools = R"("tools": [{"type": "function", "function": {"name": "f", "n": 1E3}}])";
  const std::string block = "T ｜DSML｜ <think>..</think> {x}\n{\"name\": \"f\", \"n\": 1000.0}\nend";
  EXPECT_EQ(Rendered("{" + kUser + ", " + tools + "}"), kBegin + "\n\n" + block + kAsked + "</think>");
  EXPECT_EQ(
      Rendered(R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}], )" +
               tools + "}"),
      kBegin + "S\n\n" + block + kAsked + "</think>");
  EXPECT_EQ(
      Rendered("{" + kUser +
               R"(, "response_format": {"type": "json_schema", "json_schema": {"schema": {"z":1,"a":2}}}})"),
      kBegin + "\n\n## R\n{\"z\": 1, \"a\": 2}" + kAsked + "</think>");
  for (const char* nothing :
       {R"("response_format": {"type": "text"})", R"("response_format": {"type": "json_object"})",
        R"("tools": [])", R"("tools": null)"}) {
    EXPECT_EQ(Rendered("{" + kUser + ", " + nothing + "}"), kBegin + kAsked + "</think>") << nothing;
  }
  EXPECT_THAT(Rendered(R"({"messages": [{"role": "system", "content": "", "tools": [{"function": {}}]}], )" +
                       tools + "}"),
              HasSubstr("send them once"));
}

TEST(ChatRequestTest, Content) {
  const auto user = [](const std::string& content) {
    return Rendered(R"({"messages": [{"role": "user", "content": )" + content + "}]}");
  };
  EXPECT_EQ(user("null"), kBegin + "<｜User｜><｜Assistant｜></think>");
  EXPECT_EQ(user(R"([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])"),
            kBegin + "<｜User｜>a\n\nb<｜Assistant｜></think>");
  EXPECT_THAT(user(R"([{"type": "image_url"}])"),
              HasSubstr("messages[0]: content[0] has the type 'image_url'"));
  EXPECT_THAT(user("5"), HasSubstr("content is no string"));
  EXPECT_EQ(
      Rendered(
          R"({"messages": [{"role": "tool", "content": [{"type": "text", "text": "a"}, {"type": "x"}]}]})"),
      kBegin + "<｜User｜><tool_result>a\n\n[Unsupported x]</tool_result><｜Assistant｜></think>");
}

TEST(ChatRequestTest, ArgumentsAsTextOrObject) {
  const auto call = [](const std::string& arguments) {
    return Rendered(
        R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": )" +
        arguments + "}}]}]}");
  };
  EXPECT_EQ(call(R"("{\"a\":1.50}")"), call(R"({"a": 1.5})"));
  EXPECT_THAT(call(R"({"a": 1.5})"), HasSubstr("<｜DSML｜parameter name=\"a\" string=\"false\">1.5</"));
  for (const std::string text : {"", "{", "[1]", "null", "7"}) {
    EXPECT_THAT(call("\"" + text + "\""),
                HasSubstr("<｜DSML｜parameter name=\"arguments\" string=\"true\">" + text + "</"));
  }
  EXPECT_THAT(call("null"), HasSubstr("messages[0]: tool_calls[0]: function.arguments is missing"));
}

TEST(ChatRequestTest, ErrorsNameTheField) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "not JSON"},
      {"[]", "messages is missing"},
      {"{}", "messages is missing"},
      {R"({"messages": []})", "empty"},
      {R"({"messages": [5]})", "messages[0]: is no object"},
      {R"({"messages": [{"role": 5}]})", "messages[0]: role is no string"},
      {R"({"messages": [{"role": "assistant", "tool_calls": 5}]})", "tool_calls is no array"},
      {R"({"messages": [{"role": "assistant", "tool_calls": [{}]}]})", "tool_calls[0]: expected"},
      {R"({"messages": [{"role": "assistant", "wo_eos": 1}]})", "wo_eos is neither"},
      {R"({"messages": [{"role": "user"}], "thinking": {"type": "some"}})", "thinking.type is 'some'"},
      {R"({"messages": [{"role": "user"}], "thinking": 5})", "thinking is neither"},
      {R"({"messages": [{"role": "user"}], "reasoning_effort": 5})", "reasoning_effort is no string"},
      {R"({"messages": [{"role": "user"}], "response_format": 5})", "response_format: expected"},
      {R"({"messages": [{"role": "user"}], "response_format": {"type": "json_schema"}})",
       "response_format: expected"}};
  for (const auto& [body, expected] : cases) EXPECT_THAT(Rendered(body), HasSubstr(expected)) << body;
}

TEST(ChatRequestTest, FromABodyToIds) {
  const auto tokenizer = TokenizerWithMarks();
  const auto ids = EncodeChatRequest(*tokenizer, MadeUpEncoding("leveled"), "{" + kUser + "}");
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, testing::ElementsAre(1000, 1002, 'a', 1003, 1005));
}

}  // namespace
}  // namespace cachalot
