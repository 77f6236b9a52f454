#pragma once
// What the model writes, taken apart while it comes: reasoning, content and tool calls.
//   reasoning</think>content\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n
//   <｜DSML｜parameter name="k" string="true">v</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/tokenizer/chat_message.h"

namespace cachalot {

struct ChatEvent {
  enum class Kind {
    kReasoning,
    kContent,
    kToolCall,   // one whole call
    kMalformed,  // text of a block of tool calls that does not follow the format or has no end
  };
  Kind kind;
  std::string text;
  ToolCall call = {};  // its id is empty: the server makes one
};

/// One answer. All events together are the same for any cuts of the text (neighbouring texts of one kind
/// joined): every byte but the delimiters is in exactly one of them. Not thread-safe.
///
/// Models sometimes leave out </think> before a tool call: the call ends the reasoning then. A block that
/// turns out not to be one while the reasoning is open was a quotation and is reasoning.
class ChatOutputParser {
 public:
  /// `thinking`: whether the prompt ended with <think>.
  explicit ChatOutputParser(bool thinking);

  /// `text` is the answer with special tokens shown (SpecialTokens::kShow). What follows the end token is
  /// ignored.
  std::vector<ChatEvent> Push(std::string_view text);

  /// The end of the answer, also if it was cut off.
  std::vector<ChatEvent> Finish();

  /// Whether the answer has not come past its reasoning.
  bool reasoning_open() const { return reasoning_open_; }

 private:
  enum class State { kText, kBetween, kInvokeHead, kParameterHead, kValue, kAfterParameter, kDone };
  enum class Step { kMore, kGo, kBad };  // wants more text, went on, is not the format

  Step Text();
  Step Block();
  Step Between();
  Step InvokeHead();
  Step ParameterHead();
  Step Value();
  Step AfterParameter();
  Step Tag(std::string_view a, State if_a, std::string_view b, State if_b);
  bool Find(std::string_view delimiter, size_t* at);

  void Advance();
  void Emit(ChatEvent::Kind kind, std::string_view text);
  void EmitText(size_t count);
  void EndInvoke();
  void GiveUpBlock(size_t count);

  State state_ = State::kText;
  bool reasoning_open_;
  bool wants_think_end_;  // may be longer than reasoning is open: a tool call ends it too
  std::string buffer_;    // not yet in an event
  size_t at_ = 0;         // inside a block: what of the buffer is understood
  size_t searched_ = 0;   // and what has been searched for the next delimiter
  std::string name_, parameter_;
  bool is_string_ = false;
  std::vector<std::pair<std::string, std::string>> parameters_;  // values as JSON
  std::vector<ChatEvent> events_;
};

struct ChatOutput {
  std::string reasoning, content;
  std::vector<ToolCall> tool_calls;
  std::string malformed;
};

/// The whole answer at once.
ChatOutput ParseChatOutput(std::string_view text, bool thinking);

}  // namespace cachalot
