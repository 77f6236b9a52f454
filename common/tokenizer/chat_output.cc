#include "common/tokenizer/chat_output.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/tokenizer/chat_prompt.h"
#include "common/tokenizer/python_json.h"

namespace cachalot {
namespace {

using Kind = ChatEvent::Kind;

constexpr std::string_view kBlockBegin = "\n\n<｜DSML｜tool_calls>";
constexpr std::string_view kBlockEnd = "</｜DSML｜tool_calls>";
constexpr std::string_view kInvokeBegin = "<｜DSML｜invoke";
constexpr std::string_view kInvokeEnd = "</｜DSML｜invoke>";
constexpr std::string_view kParameterBegin = "<｜DSML｜parameter";
constexpr std::string_view kParameterEnd = "</｜DSML｜parameter>";
constexpr std::string_view kName = " name=\"";
constexpr size_t kPartBytes = 4096;
constexpr size_t kMaxNameBytes = 4096;  // of a parameter
constexpr std::string_view kSpace = " \t\r\n";

/// The bytes at the end of `text` that may be the beginning of `delimiter`.
size_t HeldBack(std::string_view text, std::string_view delimiter) {
  for (size_t count = std::min(text.size(), delimiter.size() - 1); count > 0; --count) {
    if (text.substr(text.size() - count) == delimiter.substr(0, count)) return count;
  }
  return 0;
}

/// Pasted if it is JSON. Models forget string="true"; a client must get JSON even so.
std::string ArgumentJson(const std::string& value, bool is_string) {
  if (!is_string && PythonJson::Parse(value).ok()) return value;
  return PythonJsonString(value);
}

}  // namespace

ChatOutputParser::ChatOutputParser(bool thinking) : reasoning_open_(thinking), wants_think_end_(thinking) {}

std::vector<ChatEvent> ChatOutputParser::Push(std::string_view text) {
  // In parts, since taking text off the front of a long buffer again and again would be quadratic.
  for (size_t at = 0; at < text.size() && state_ != State::kDone; at += kPartBytes) {
    buffer_ += text.substr(at, kPartBytes);
    Advance();
  }
  return std::exchange(events_, {});
}

std::vector<ChatEvent> ChatOutputParser::Finish() {
  if (state_ != State::kText && state_ != State::kDone) {
    // In a block that was cut off the end token has not been looked for.
    const size_t end = buffer_.find(kEndToken);
    buffer_.resize(std::min(end, buffer_.size()));
    GiveUpBlock(buffer_.size());
  } else if (state_ == State::kText) {
    EmitText(buffer_.size());
  }
  state_ = State::kDone;
  return std::exchange(events_, {});
}

void ChatOutputParser::Advance() {
  while (state_ != State::kDone) {
    const Step step = state_ == State::kText ? Text() : Block();
    if (step == Step::kMore) return;
    if (step == Step::kBad) GiveUpBlock(at_);
  }
}

ChatOutputParser::Step ChatOutputParser::Text() {
  const std::string_view text = buffer_;
  size_t first = std::string_view::npos, held = 0;
  std::string_view found;
  for (const std::string_view delimiter : {kThinkEndToken, kBlockBegin, kEndToken}) {
    if (delimiter == kThinkEndToken && !wants_think_end_) continue;
    if (const size_t at = text.find(delimiter); at < first) first = at, found = delimiter;
    held = std::max(held, HeldBack(text, delimiter));
  }
  if (found.empty()) {
    EmitText(text.size() - held);
    return Step::kMore;
  }
  EmitText(first);
  if (found == kBlockBegin) {
    state_ = State::kBetween;
    at_ = kBlockBegin.size();  // the buffer keeps the delimiter, in case that this is no block
    return Step::kGo;
  }
  buffer_.erase(0, found.size());
  if (found == kThinkEndToken) {
    reasoning_open_ = wants_think_end_ = false;
  } else {
    state_ = State::kDone;
    buffer_.clear();
  }
  return Step::kGo;
}

ChatOutputParser::Step ChatOutputParser::Block() {
  switch (state_) {
    case State::kBetween:
      return Between();
    case State::kInvokeHead:
      return InvokeHead();
    case State::kParameterHead:
      return ParameterHead();
    case State::kValue:
      return Value();
    case State::kAfterParameter:
      return AfterParameter();
    case State::kText:
    case State::kDone:
      break;
  }
  CHECK(false);
}

/// White space, then one of two tags.
ChatOutputParser::Step ChatOutputParser::Tag(std::string_view a, State if_a, std::string_view b, State if_b) {
  at_ = std::min(buffer_.find_first_not_of(kSpace, at_), buffer_.size());
  const std::string_view rest = std::string_view(buffer_).substr(at_);
  for (const auto& [tag, next] : {std::pair(a, if_a), std::pair(b, if_b)}) {
    if (rest.starts_with(tag)) {
      at_ += tag.size();
      searched_ = at_;
      state_ = next;
      return Step::kGo;
    }
  }
  return a.starts_with(rest) || b.starts_with(rest) ? Step::kMore : Step::kBad;
}

ChatOutputParser::Step ChatOutputParser::Between() {
  const Step step = Tag(kInvokeBegin, State::kInvokeHead, kBlockEnd, State::kText);
  if (step == Step::kGo && state_ == State::kText) {
    buffer_.erase(0, at_);
    at_ = searched_ = 0;
  }
  return step;
}

/// Looks on from where the last search ended, so that a long value is searched once.
bool ChatOutputParser::Find(std::string_view delimiter, size_t* at) {
  *at = buffer_.find(delimiter, searched_);
  if (*at != std::string::npos) return true;
  const size_t unfinished = buffer_.size() - std::min(buffer_.size(), delimiter.size() - 1);
  searched_ = std::max(searched_, unfinished);
  return false;
}

ChatOutputParser::Step ChatOutputParser::InvokeHead() {
  const std::string_view head = std::string_view(buffer_).substr(at_);
  if (!head.starts_with(kName)) return kName.starts_with(head) ? Step::kMore : Step::kBad;
  size_t end = 0;
  if (!Find("\">", &end)) return Step::kMore;
  if (end < at_ + kName.size()) return Step::kBad;
  name_ = buffer_.substr(at_ + kName.size(), end - at_ - kName.size());
  parameters_.clear();
  at_ = end + 2;
  state_ = State::kAfterParameter;
  return Step::kGo;
}

ChatOutputParser::Step ChatOutputParser::AfterParameter() {
  const Step step = Tag(kParameterBegin, State::kParameterHead, kInvokeEnd, State::kBetween);
  if (step == Step::kGo && state_ == State::kBetween) EndInvoke();
  return step;
}

ChatOutputParser::Step ChatOutputParser::ParameterHead() {
  const std::string_view head = std::string_view(buffer_).substr(at_);
  if (!head.starts_with(kName)) return kName.starts_with(head) ? Step::kMore : Step::kBad;
  size_t end = std::string::npos;
  for (const std::string_view flag : {"\" string=\"true\">", "\" string=\"false\">"}) {
    const size_t found = head.find(flag, kName.size());
    if (found >= end) continue;
    end = found;
    is_string_ = flag == "\" string=\"true\">";
  }
  // A name without an end would be searched again at every push. Where it has one the answer may not depend on how much
  // text came with it.
  const bool ended = end != std::string::npos;
  if (end > kMaxNameBytes && (ended || head.size() > kMaxNameBytes + 32)) return Step::kBad;
  if (!ended) return Step::kMore;
  parameter_ = head.substr(kName.size(), end - kName.size());
  for (const auto& [name, value] : parameters_) {
    if (name == parameter_) return Step::kBad;
  }
  at_ = buffer_.find('>', at_ + end) + 1;
  searched_ = at_;
  state_ = State::kValue;
  return Step::kGo;
}

ChatOutputParser::Step ChatOutputParser::Value() {
  size_t end = 0;
  if (!Find(kParameterEnd, &end)) return Step::kMore;
  parameters_.emplace_back(parameter_, ArgumentJson(buffer_.substr(at_, end - at_), is_string_));
  at_ = end + kParameterEnd.size();
  state_ = State::kAfterParameter;
  return Step::kGo;
}

void ChatOutputParser::EndInvoke() {
  std::string arguments = "{";
  for (const auto& [name, value] : parameters_) {
    arguments += (arguments.size() > 1 ? ", " : "") + PythonJsonString(name) + ": " + value;
  }
  events_.push_back({Kind::kToolCall, "", {"", name_, arguments + "}"}});
  reasoning_open_ = false;
  buffer_.erase(0, at_);
  at_ = searched_ = 0;
}

/// The block is none, or none any more: `count` bytes of it become text.
void ChatOutputParser::GiveUpBlock(size_t count) {
  count = std::min(count, buffer_.size());
  const std::string_view text = std::string_view(buffer_).substr(0, count);
  Emit(reasoning_open_ ? Kind::kReasoning : Kind::kMalformed, text);
  buffer_.erase(0, count);
  at_ = searched_ = 0;
  state_ = State::kText;
}

void ChatOutputParser::EmitText(size_t count) {
  Emit(reasoning_open_ ? Kind::kReasoning : Kind::kContent, std::string_view(buffer_).substr(0, count));
  buffer_.erase(0, count);
}

void ChatOutputParser::Emit(ChatEvent::Kind kind, std::string_view text) {
  if (text.empty()) return;
  if (!events_.empty() && events_.back().kind == kind) {
    events_.back().text += text;
  } else {
    events_.push_back({kind, std::string(text)});
  }
}

ChatOutput ParseChatOutput(std::string_view text, bool thinking) {
  ChatOutputParser parser(thinking);
  std::vector<ChatEvent> events = parser.Push(text);
  for (ChatEvent& event : parser.Finish()) events.push_back(std::move(event));
  ChatOutput output;
  for (ChatEvent& event : events) {
    if (event.kind == Kind::kReasoning) output.reasoning += event.text;
    if (event.kind == Kind::kContent) output.content += event.text;
    if (event.kind == Kind::kMalformed) output.malformed += event.text;
    if (event.kind == Kind::kToolCall) output.tool_calls.push_back(std::move(event.call));
  }
  return output;
}

}  // namespace cachalot
