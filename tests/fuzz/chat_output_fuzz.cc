// What a model writes: bit 0 of the first byte says whether it thinks, the second seeds the cuts, the rest is
// the text.

#include <random>

#include "common/tokenizer/chat_output.h"
#include "common/tokenizer/python_json.h"
#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {
namespace {

using Kind = ChatEvent::Kind;

void Join(std::vector<ChatEvent> events, std::vector<ChatEvent>* all) {
  for (ChatEvent& event : events) {
    CHECK(event.kind == Kind::kToolCall || !event.text.empty());
    if (event.kind != Kind::kToolCall && !all->empty() && all->back().kind == event.kind) {
      all->back().text += event.text;
    } else {
      all->push_back(std::move(event));
    }
  }
}

/// The joined events of `text`, cut by `next` into parts of so many bytes.
template <typename Next>
std::vector<ChatEvent> Parse(std::string_view text, bool thinking, Next next) {
  ChatOutputParser parser(thinking);
  std::vector<ChatEvent> all;
  while (!text.empty()) {
    const size_t count = std::min<size_t>(next(), text.size());
    Join(parser.Push(text.substr(0, count)), &all);
    text.remove_prefix(count);
  }
  Join(parser.Finish(), &all);
  CHECK(parser.Push("x").empty() && parser.Finish().empty());
  return all;
}

bool Equal(const std::vector<ChatEvent>& a, const std::vector<ChatEvent>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].kind != b[i].kind || a[i].text != b[i].text || a[i].call.name != b[i].call.name ||
        a[i].call.arguments != b[i].call.arguments)
      return false;
  return true;
}

/// `part` in `text` at or after `at`, and where it ends: what events show comes out of the text, in order.
void Consume(std::string_view text, std::string_view part, size_t* at) {
  // Joined texts may have stood around a delimiter, so each byte is looked for by itself.
  for (char c : part) {
    *at = text.find(c, *at);
    CHECK(*at != std::string_view::npos);
    ++*at;
  }
}

void CheckText(std::string_view text, bool thinking, uint8_t seed) {
  const auto whole = Parse(text, thinking, [&] { return text.size(); });
  std::mt19937 random(seed);
  CHECK(Equal(whole, Parse(text, thinking, [&] { return 1 + random() % (1 + seed); })));
  CHECK(Equal(whole, Parse(text, thinking, [] { return 1; })));
  size_t at = 0;
  for (const ChatEvent& event : whole) {
    Consume(text, event.text, &at);
    if (event.kind != Kind::kToolCall) continue;
    Consume(text, event.call.name, &at);
    const auto arguments = PythonJson::Parse(event.call.arguments);
    // Text that is not UTF-8 is passed on as it came.
    if (PythonJson::Parse(PythonJsonString(text)).ok()) CHECK(arguments.ok() && arguments->is_object());
  }
  const ChatOutput output = ParseChatOutput(text, thinking);
  ChatOutput sum;
  for (const ChatEvent& event : whole) {
    if (event.kind == Kind::kReasoning) sum.reasoning += event.text;
    if (event.kind == Kind::kContent) sum.content += event.text;
    if (event.kind == Kind::kMalformed) sum.malformed += event.text;
    if (event.kind == Kind::kToolCall) sum.tool_calls.push_back(event.call);
  }
  CHECK(output.reasoning == sum.reasoning && output.content == sum.content &&
        output.malformed == sum.malformed);
  CHECK(output.tool_calls.size() == sum.tool_calls.size());
}

}  // namespace

std::vector<Seed> Seeds() {
  const std::string block = "\n\n<｜DSML｜tool_calls>\n", end = "</｜DSML｜tool_calls>";
  const std::string invoke = "<｜DSML｜invoke name=\"f\">\n", invoke_end = "</｜DSML｜invoke>\n";
  const auto parameter = [](const std::string& name, const std::string& value, bool text) {
    return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + (text ? "true" : "false") + "\">" + value +
           "</｜DSML｜parameter>\n";
  };
  const std::string call = invoke + parameter("k", "v", true) + parameter("n", "[1, {\"a\": NaN}]", false) +
                           parameter("s", "no JSON", false) + invoke_end;
  const std::string stop = "<｜end▁of▁sentence｜>";
  return {{"plain", "\2\3Hello\n\n<world"},
          {"thinking", "\1\5why</think>because" + stop + "rest"},
          {"call", "\1\7why</think>I call" + block + call + call + end + stop},
          {"call_in_reasoning", "\1\2why" + block + call + end + "more</think>text"},
          {"quotation", "\1\4a block is" + block + "and so on</think>yes"},
          {"cut_off", "\1\6</think>" + block + invoke + "<｜DSML｜parameter name=\"k\" string=\"tr"},
          {"same_parameter",
           "\2\6" + block + invoke + parameter("k", "1", false) + parameter("k", "2", false) + end},
          {"long_name",
           "\2\x60" + block + invoke + parameter(std::string(4093, 'n'), "1", false) + invoke_end + end}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  cachalot::fuzz::CheckText(cachalot::fuzz::Text(data + 2, size - 2), data[0] & 1, data[1]);
  return 0;
}
