// Answers taken apart: every cut gives the same, and nothing is lost of malformed ones.

#include "common/tokenizer/chat_output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace cachalot {
namespace {

const std::string kEnd = "<｜end▁of▁sentence｜>", kOpen = "\n\n<｜DSML｜tool_calls>\n",
                  kClose = "</｜DSML｜tool_calls>";

std::string Parameter(const std::string& name, const std::string& value, bool is_string) {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + (is_string ? "true" : "false") + "\">" +
         value + "</｜DSML｜parameter>\n";
}

std::string Invoke(const std::string& name, const std::string& parameters) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + parameters + "</｜DSML｜invoke>\n";
}

/// Events in one line: r:text c:text m:text f(arguments), neighbouring texts of one kind joined.
std::string Line(const std::vector<ChatEvent>& events) {
  std::string line;
  const ChatEvent* previous = nullptr;
  for (const ChatEvent& event : events) {
    if (event.kind == ChatEvent::Kind::kToolCall) {
      line += "|" + event.call.name + "(" + event.call.arguments + ")";
    } else {
      if (previous == nullptr || previous->kind != event.kind) {
        line += std::string("|") + "rc m"[static_cast<int>(event.kind)] + ":";
      }
      line += event.text;
      EXPECT_NE(event.text, "");
    }
    previous = &event;
  }
  return line;
}

std::string Cut(const std::vector<std::string_view>& parts, bool thinking) {
  ChatOutputParser parser(thinking);
  std::vector<ChatEvent> all;
  for (const std::string_view part : parts) {
    for (ChatEvent& event : parser.Push(part)) all.push_back(std::move(event));
  }
  for (ChatEvent& event : parser.Finish()) all.push_back(std::move(event));
  return Line(all);
}

/// The parse of `text`, checked for every cut into two parts and for single bytes.
std::string Parsed(std::string_view text, bool thinking = false) {
  const std::string whole = Cut({text}, thinking);
  for (size_t i = 0; i <= text.size(); ++i) {
    EXPECT_EQ(Cut({text.substr(0, i), text.substr(i)}, thinking), whole) << "cut at " << i;
  }
  std::vector<std::string_view> bytes;
  for (size_t i = 0; i < text.size(); ++i) bytes.push_back(text.substr(i, 1));
  EXPECT_EQ(Cut(bytes, thinking), whole);
  return whole;
}

TEST(ChatOutputTest, TextAndReasoning) {
  EXPECT_EQ(Parsed("hello" + kEnd), "|c:hello");
  EXPECT_EQ(Parsed("hello"), "|c:hello");
  EXPECT_EQ(Parsed(""), "");
  EXPECT_EQ(Parsed("why\n\n</think>\n\nbecause 1 < 2 </" + kEnd, true), "|r:why\n\n|c:\n\nbecause 1 < 2 </");
  EXPECT_EQ(Parsed("</think>x", true), "|c:x");
  EXPECT_EQ(Parsed("cut off in thou", true), "|r:cut off in thou");
  EXPECT_EQ(Parsed("a</think>b</think>c", true), "|r:a|c:b</think>c");
  EXPECT_EQ(Parsed("a</think>b", false), "|c:a</think>b");
  EXPECT_EQ(Parsed("a" + kEnd + "b" + kEnd), "|c:a");
  EXPECT_EQ(Parsed("a" + kEnd + "b</think>", true), "|r:a");
}

TEST(ChatOutputTest, ToolCalls) {
  const std::string calls =
      kOpen + Invoke("f", Parameter("a", "x \"y\"\n<b>", true) + Parameter("b", "[1,  2]", false)) +
      Invoke("g", "\n") + kClose + kEnd;
  const std::string expected = "|f({\"a\": \"x \\\"y\\\"\\n<b>\", \"b\": [1,  2]})|g({})";
  EXPECT_EQ(Parsed(calls), expected);
  EXPECT_EQ(Parsed("text" + calls), "|c:text" + expected);
  EXPECT_EQ(Parsed("why</think>" + calls, true), "|r:why" + expected);
  EXPECT_EQ(Parsed("why</think>text\n" + calls, true), "|r:why|c:text\n" + expected);
  EXPECT_EQ(Parsed(kOpen + kClose + "rest"), "|c:rest");
  EXPECT_EQ(Parsed(kOpen + Invoke("f", "") + kClose + " and " + kOpen + Invoke("g", "") + kClose),
            "|f({})|c: and |g({})");
}

TEST(ChatOutputTest, ACallWithoutThinkEndEndsTheReasoning) {
  const std::string call = kOpen + Invoke("f", Parameter("a", "1", true)) + kClose;
  EXPECT_EQ(Parsed("I should call f" + call + kEnd, true), "|r:I should call f|f({\"a\": \"1\"})");
  EXPECT_EQ(Parsed("r" + call + "</think>after", true), "|r:r|f({\"a\": \"1\"})|c:after");
  EXPECT_EQ(Parsed("r" + call + "after", true), "|r:r|f({\"a\": \"1\"})|c:after");
  ChatOutputParser parser(true);
  parser.Push("r");
  EXPECT_TRUE(parser.reasoning_open());
  parser.Push(call);
  EXPECT_FALSE(parser.reasoning_open());
}

TEST(ChatOutputTest, AQuotedBlockInTheReasoningIsReasoning) {
  const std::string quote = kOpen + "is how calls begin";
  EXPECT_EQ(Parsed("note:" + quote + "</think>yes", true), "|r:note:" + quote + "|c:yes");
  EXPECT_EQ(Parsed("note:" + kOpen, true), "|r:note:" + kOpen);
}

TEST(ChatOutputTest, MalformedBlocksAreKept) {
  const std::string head = "<｜DSML｜invoke name=\"f\">\n", tag = "<｜DSML｜parameter";
  EXPECT_EQ(Parsed("a" + kOpen + "x"), "|c:a|m:" + kOpen + "|c:x");
  // Cut off: all of it, without the end token.
  for (const std::string& cut : {kOpen, kOpen + head, kOpen + head + tag + " name=\"a\" string=\"true\">val",
                                 kOpen + "<｜DSML｜invoke name=\"f", kOpen + head + tag + " name=\"a"}) {
    EXPECT_EQ(Parsed("a" + cut), "|c:a|m:" + cut);
    EXPECT_EQ(Parsed("a" + cut + kEnd), "|c:a|m:" + cut);
  }
  EXPECT_EQ(Parsed(kOpen + "<｜DSML"), "|m:" + kOpen + "<｜DSML");
  // What was whole before the fault is a call.
  EXPECT_EQ(Parsed(kOpen + Invoke("g", "") + head + "zz"), "|g({})|m:\n" + head + "|c:zz");
  EXPECT_EQ(Parsed(kOpen + head + Parameter("a", "1", false) + Parameter("a", "2", false)),
            "|m:" + kOpen + head + Parameter("a", "1", false) + tag +
                "|c: name=\"a\" string=\"false\">2</｜DSML｜parameter>\n");
  EXPECT_EQ(Parsed(kOpen + "<｜DSML｜invoke name=\">\n"), "|m:" + kOpen + "<｜DSML｜invoke|c: name=\">\n");
  const std::string long_name = kOpen + head + tag;
  EXPECT_EQ(Cut({long_name + " name=\"" + std::string(10'000, 'x')}, false),
            "|m:" + long_name + "|c: name=\"" + std::string(10'000, 'x'));
}

TEST(ChatOutputTest, ArgumentsAreAlwaysJson) {
  EXPECT_EQ(Parsed(kOpen + Invoke("f", Parameter("a", "hello", false) + Parameter("b", "", false)) + kClose),
            "|f({\"a\": \"hello\", \"b\": \"\"})");
  EXPECT_EQ(Parsed(kOpen + Invoke("f", Parameter("a\"b", "1e400", false)) + kClose),
            "|f({\"a\\\"b\": 1e400})");
  // Between the tags any white space will do.
  EXPECT_EQ(
      Parsed(
          "\n\n<｜DSML｜tool_calls><｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"a\" string=\"true\">v"
          "</｜DSML｜parameter> </｜DSML｜invoke>\n\n</｜DSML｜tool_calls>"),
      "|f({\"a\": \"v\"})");
}

TEST(ChatOutputTest, RandomMixturesAreTheSameForRandomCuts) {
  const std::string call = Invoke("f", Parameter("a", "x", true));
  const std::vector<std::string> parts = {"text",
                                          "\n",
                                          "\n\n",
                                          "<",
                                          "</",
                                          "｜DSML｜",
                                          kOpen,
                                          kClose,
                                          call,
                                          "</think>",
                                          "<think>",
                                          "<｜DSML｜invoke",
                                          " name=\"f\">\n",
                                          Parameter("k", "1", false),
                                          "</｜DSML｜invoke>",
                                          "<｜",
                                          "tool_calls>",
                                          "\"",
                                          kEnd.substr(0, 20)};
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int i = static_cast<int>(random() % 12); i > 0; --i) text += parts[random() % parts.size()];
    const bool thinking = random() % 2;
    std::vector<std::string_view> cuts;
    const std::string_view view = text;
    for (size_t at = 0; at < view.size();) {
      const size_t count = 1 + random() % 20;
      cuts.push_back(view.substr(at, count));
      at += count;
    }
    ASSERT_EQ(Cut(cuts, thinking), Cut({view}, thinking)) << text;
  }
}

TEST(ChatOutputTest, LongValuesAndManyFalseStartsAreLinear) {
  const std::string value(2'000'000, 'v');
  std::string text = kOpen + Invoke("f", Parameter("a", value, true)) + kClose;
  ChatOutputParser parser(false);
  size_t calls = 0;
  for (size_t at = 0; at < text.size(); at += 3)
    calls += parser.Push(std::string_view(text).substr(at, 3)).size();
  EXPECT_EQ(calls, 1u);
  text.clear();
  while (text.size() < 2'000'000) text += kOpen;
  EXPECT_EQ(ParseChatOutput(text, false).malformed.size() + ParseChatOutput(text, false).content.size(),
            text.size());
}

}  // namespace
}  // namespace cachalot
