// The body of a chat request, and the prompt that it makes.

#include "common/tokenizer/chat_request.h"
#include "common/tokenizer/python_json.h"
#include "common/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {
namespace {

bool Equal(const ChatRequest& a, const ChatRequest& b) {
  if (a.messages.size() != b.messages.size() || a.options.thinking != b.options.thinking ||
      a.options.reasoning_effort != b.options.reasoning_effort ||
      a.options.drop_thinking != b.options.drop_thinking)
    return false;
  for (size_t i = 0; i < a.messages.size(); ++i) {
    const ChatMessage &x = a.messages[i], &y = b.messages[i];
    if (x.role != y.role || x.content != y.content || x.reasoning != y.reasoning ||
        x.without_end != y.without_end || x.tool_call_id != y.tool_call_id || x.tools != y.tools ||
        x.response_format != y.response_format || x.task != y.task ||
        x.tool_calls.size() != y.tool_calls.size())
      return false;
    for (size_t j = 0; j < x.tool_calls.size(); ++j) {
      const ToolCall &c = x.tool_calls[j], &d = y.tool_calls[j];
      if (c.id != d.id || c.name != d.name || c.arguments != d.arguments) return false;
    }
  }
  return true;
}

bool IsUtf8(std::string_view text) { return FindInvalidUtf8(text) == std::string_view::npos; }

void CheckPrompt(const ChatRequest& request) {
  static const ChatEncoding encoding = ChatEncoding::Missing("no/encoding");
  const auto prompt = RenderChat(encoding, request.messages, request.options);
  if (!prompt.ok()) {
    const StatusCode code = prompt.status().code();
    CHECK(code == StatusCode::kInvalidArgument || code == StatusCode::kFailedPrecondition);
    return;
  }
  std::string all;
  for (const ChatPrompt::Piece& piece : prompt->pieces()) {
    CHECK(!piece.text.empty() && IsUtf8(piece.text));
    if (piece.mark) {  // what a client says is never one: all marks are the format's own
      bool known = false;
      for (std::string_view mark : {kBeginToken, kEndToken, kUserToken, kAssistantToken, kThinkBeginToken,
                                    kThinkEndToken, kLatestReminderToken, kDsmlToken})
        known |= piece.text == mark;
      CHECK_MSG(known || (!request.messages.empty() && piece.text.starts_with("<｜")), piece.text);
    }
    all += piece.text;
  }
  CHECK(all == prompt->AsText());
}

void CheckBody(std::string_view body) {
  const auto json = PythonJson::Parse(body);
  const auto request = ParseChatRequest(body);
  if (!json.ok()) {
    CHECK(json.status().code() == StatusCode::kInvalidArgument && !request.ok());
    return;
  }
  const std::string dumped = json->Dump();
  const auto again = PythonJson::Parse(dumped);
  CHECK_MSG(again.ok(), StatusMessage(again.status()));
  CHECK(again->Dump() == dumped && IsUtf8(dumped));
  const auto request_again = ParseChatRequest(dumped);
  CHECK(request.ok() == request_again.ok());
  if (!request.ok()) {
    CHECK(request.status() == request_again.status());
    CHECK(request.status().code() == StatusCode::kInvalidArgument && IsUtf8(StatusMessage(request.status())));
    return;
  }
  CHECK(Equal(*request, *request_again));
  CheckPrompt(*request);
}

}  // namespace

std::vector<Seed> Seeds() {
  const std::string user = R"({"role":"user","content":"Hello <｜User｜> \u00e9\ud83d\ude00"})";
  const std::string call =
      R"({"role":"assistant","content":null,"reasoning_content":"why","tool_calls":[{"id":"c1",)"
      R"("type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"c2",)"
      R"("function":{"name":"g","arguments":{"b":[1.5e300,NaN,-0]}}}]})";
  const std::string tool =
      R"({"role":"tool","tool_call_id":"c2","content":[{"type":"text","text":"x"},{"type":"image"}]})";
  const auto body = [](const std::string& messages, const std::string& more) {
    return "{\"messages\":[" + messages + "]" + more + "}";
  };
  return {
      {"user", body(user, "")},
      {"thinking", body(R"({"role":"system","content":"s"},)" + user, R"(,"thinking":{"type":"enabled"})")},
      {"kwargs", body(user, R"(,"chat_template_kwargs":{"enable_thinking":true,"reasoning_effort":"max"})")},
      {"tools", body(user + "," + call + "," + tool, R"(,"thinking":true,"drop_thinking":false)")},
      {"offered", body(user, R"(,"tools":[{"type":"function","function":{"name":"f","parameters":{}}}])")},
      {"schema", body(user, R"(,"response_format":{"type":"json_schema","json_schema":{"schema":{"a":1}}})")},
      {"reminder", body(user + R"(,{"role":"latest_reminder","content":"r"})", "")},
      {"task", body(R"({"role":"developer","content":"d","task":"title"},)" + user, "")},
      {"prefix", body(user + R"(,{"role":"assistant","content":"a","wo_eos":true})", "")},
      {"surrogate", body(R"({"role":"user","content":"\ud800"})", "")},
      {"deep", body(user, ",\"x\":" + std::string(600, '['))}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cachalot::fuzz::CheckBody(cachalot::fuzz::Text(data, size));
  return 0;
}
