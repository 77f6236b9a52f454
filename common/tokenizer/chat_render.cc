// RenderChat: turns to text and marks, byte for byte as the reference encoder of DeepSeek-V4 writes them.

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "common/tokenizer/chat_format.h"
#include "common/tokenizer/chat_preprocess.h"
#include "common/tokenizer/python_json.h"
#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

constexpr std::string_view kBlockSeparator = "\n\n";
constexpr std::string_view kTasks[] = {"action", "query", "authority", "domain", "title", "read_url"};

Status CheckText(const std::string& where, const char* field, const std::string& text) {
  const size_t at = FindInvalidUtf8(text);
  if (at == std::string::npos) return OkStatus();
  return InvalidArgument(where + " is not valid UTF-8 at byte " + std::to_string(at) + " of its " + field +
                         "; send UTF-8");
}

Status CheckRole(const ChatMessage& message, const std::string& where) {
  const std::string& role = message.role;
  const bool instructs = role == "system" || role == "developer";
  if (!instructs && role != "user" && role != "assistant" && role != "tool" && role != "latest_reminder") {
    return InvalidArgument(where + " has the role '" + role +
                           "'; expected 'system', 'developer', 'user', 'assistant', 'tool' or "
                           "'latest_reminder'");
  }
  // Nowhere else would they reach the model.
  if (!instructs && !(message.tools.empty() && message.response_format.empty())) {
    return InvalidArgument(where + " (" + role +
                           ") has tools or a response_format; only system and developer messages may");
  }
  if (role == "developer" && message.content.empty()) {
    return InvalidArgument(where + " (developer) is empty; a developer message needs content");
  }
  if (role != "assistant" && !message.tool_calls.empty()) {
    return InvalidArgument(where + " (" + role + ") has tool_calls; only assistant messages may");
  }
  const bool known_task = message.task.empty() ||
                          std::find(std::begin(kTasks), std::end(kTasks), message.task) != std::end(kTasks);
  if (known_task) return OkStatus();
  return InvalidArgument(where + " has the task '" + message.task +
                         "'; expected action, query, authority, domain, title or read_url");
}

Status CheckMessage(const ChatMessage& message, size_t index) {
  const std::string number = "message " + std::to_string(index);
  RETURN_IF_ERROR(CheckRole(message, number));
  const std::string where = number + " (" + message.role + ")";
  RETURN_IF_ERROR(CheckText(where, "content", message.content));
  RETURN_IF_ERROR(CheckText(where, "reasoning", message.reasoning));
  for (const ToolCall& call : message.tool_calls) {
    RETURN_IF_ERROR(CheckText(where, "tool call's name", call.name));
    RETURN_IF_ERROR(CheckText(where, "tool call's arguments", call.arguments));
  }
  return OkStatus();
}

/// The truthy value of a JSON field, or nothing.
StatusOr<std::optional<PythonJson>> ReadField(const std::string& text, const std::string& name) {
  if (text.empty()) return std::nullopt;
  StatusOr<PythonJson> value = PythonJson::Parse(text);
  if (!value.ok()) return Annotate(value.status(), name);
  if (!value->truthy()) return std::nullopt;
  return std::move(*value);
}

/// One JSON line for the `function` of each tool.
StatusOr<std::string> ToolSchemas(const PythonJson& tools) {
  if (!tools.is_array()) return InvalidArgument("tools is no array");
  std::string schemas;
  for (size_t i = 0; i < tools.items.size(); ++i) {
    const PythonJson* function = tools.items[i].Find("function");
    if (function == nullptr || !function->is_object()) {
      return InvalidArgument("tools[" + std::to_string(i) +
                             "] has no function; expected {\"type\": \"function\", \"function\": {..}}");
    }
    schemas += (i > 0 ? "\n" : "") + function->Dump();
  }
  return schemas;
}

class Renderer {
 public:
  Renderer(const ChatEncoding& encoding, const ChatOptions& options, bool drop_thinking,
           std::vector<ChatTurn> turns)
      : encoding_(encoding),
        options_(options),
        drop_thinking_(drop_thinking),
        turns_(std::move(turns)),
        last_asking_(LastAskingTurn(turns_)) {}

  StatusOr<ChatPrompt> Run() {
    if (options_.begin && options_.encoded_context == 0) prompt_.Mark(kBeginToken);
    for (size_t i = 0; i < turns_.size(); ++i) {
      if (!turns_[i].from_context) RETURN_IF_ERROR(Turn(i));
    }
    return std::move(prompt_);
  }

 private:
  Status Turn(size_t i) {
    const ChatTurn& turn = turns_[i];
    if (i == 0 && options_.thinking) {
      ASSIGN_OR_RETURN(const std::string prefix, encoding_.EffortPrefix(options_.reasoning_effort));
      prompt_.Text(prefix);
    }
    if (turn.is_user) {
      UserTurn(turn);
    } else if (turn.Is("assistant")) {
      AssistantTurn(i);
    } else {
      if (turn.Is("developer")) prompt_.Mark(kUserToken);
      if (turn.Is("latest_reminder")) prompt_.Mark(kLatestReminderToken);
      prompt_.Text(turn.message->content);
      RETURN_IF_ERROR(Extras(*turn.message));
    }
    Transition(i);
    return OkStatus();
  }

  void UserTurn(const ChatTurn& turn) {
    prompt_.Mark(kUserToken);
    std::string_view separator;
    for (const ChatTurn::Block& block : turn.blocks) {
      prompt_.Text(std::exchange(separator, kBlockSeparator));
      if (block.tool_result) prompt_.Text("<tool_result>");
      prompt_.Text(block.text);
      if (block.tool_result) prompt_.Text("</tool_result>");
    }
  }

  Status Extras(const ChatMessage& message) {
    ASSIGN_OR_RETURN(const std::optional<PythonJson> tools, ReadField(message.tools, "tools"));
    if (tools) {
      ASSIGN_OR_RETURN(const std::string schemas, ToolSchemas(*tools));
      prompt_.Text(kBlockSeparator);
      RETURN_IF_ERROR(encoding_.RenderTools(schemas, &prompt_));
    }
    ASSIGN_OR_RETURN(const std::optional<PythonJson> format,
                     ReadField(message.response_format, "response_format"));
    if (format) {
      prompt_.Text(kBlockSeparator);
      RETURN_IF_ERROR(encoding_.RenderResponseFormat(format->Dump(), &prompt_));
    }
    return OkStatus();
  }

  void AssistantTurn(size_t i) {
    const ChatTurn& turn = turns_[i];
    const bool answers_task = i > 0 && !turns_[i - 1].task().empty();
    if (options_.thinking && !answers_task && (!drop_thinking_ || static_cast<ptrdiff_t>(i) > last_asking_)) {
      if (turn.keeps_reasoning) prompt_.Text(turn.message->reasoning);
      prompt_.Mark(kThinkEndToken);
    }
    prompt_.Text(turn.message->content);
    if (!turn.message->tool_calls.empty()) ToolCalls(turn.message->tool_calls);
    if (!turn.message->without_end) prompt_.Mark(kEndToken);
  }

  /// <｜DSML｜rest or </｜DSML｜rest.
  void Tag(std::string_view open, std::string_view rest) {
    prompt_.Text(open);
    prompt_.Mark(kDsmlToken);
    prompt_.Text(rest);
  }

  void ToolCalls(const std::vector<ToolCall>& calls) {
    prompt_.Text("\n\n");
    Tag("<", "tool_calls>\n");
    for (const ToolCall& call : calls) {
      Tag("<", "invoke name=\"" + call.name + "\">\n");
      Arguments(call.arguments);
      Tag("\n</", "invoke>\n");
    }
    Tag("</", "tool_calls>");
  }

  void Arguments(const std::string& text) {
    const StatusOr<PythonJson> arguments = PythonJson::Parse(text);
    if (!arguments.ok() || !arguments->is_object()) return Parameter("arguments", true, text);
    std::string_view separator;
    for (const auto& [name, value] : arguments->members) {
      prompt_.Text(std::exchange(separator, "\n"));
      Parameter(name, value.is_string(), value.is_string() ? value.text : value.Dump());
    }
  }

  void Parameter(const std::string& name, bool is_string, const std::string& value) {
    Tag("<", "parameter name=\"" + name + "\" string=\"" + (is_string ? "true" : "false") + "\">" + value);
    Tag("</", "parameter>");
  }

  /// What opens the answer to this turn, if one follows.
  void Transition(size_t i) {
    const ChatTurn& turn = turns_[i];
    if (i + 1 < turns_.size() && !turns_[i + 1].Is("assistant") && !turns_[i + 1].Is("latest_reminder"))
      return;
    const bool thinks = options_.thinking && (!drop_thinking_ || static_cast<ptrdiff_t>(i) >= last_asking_);
    if (turn.task() == "action") {
      prompt_.Mark(kAssistantToken);
      prompt_.Mark(options_.thinking ? kThinkBeginToken : kThinkEndToken);
    } else if (turn.task().empty() && turn.asks()) {
      prompt_.Mark(kAssistantToken);
      prompt_.Mark(thinks ? kThinkBeginToken : kThinkEndToken);
    }
    if (!turn.task().empty()) prompt_.Mark("<｜" + std::string(turn.task()) + "｜>");
  }

  const ChatEncoding& encoding_;
  const ChatOptions& options_;
  const bool drop_thinking_;
  const std::vector<ChatTurn> turns_;
  const ptrdiff_t last_asking_;
  ChatPrompt prompt_;
};

/// A model that was offered tools keeps the reasoning between its calls.
StatusOr<bool> OffersTools(const std::vector<ChatMessage>& messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSIGN_OR_RETURN(const std::optional<PythonJson> tools,
                     ReadField(messages[i].tools, "message " + std::to_string(i) + ": tools"));
    if (tools) return true;
  }
  return false;
}

}  // namespace

StatusOr<ChatPrompt> RenderChat(const ChatEncoding& encoding, const std::vector<ChatMessage>& messages,
                                const ChatOptions& options) {
  if (messages.size() <= options.encoded_context) {
    return InvalidArgument("the list of messages is empty; send at least one user message");
  }
  for (size_t i = 0; i < messages.size(); ++i) RETURN_IF_ERROR(CheckMessage(messages[i], i));
  RETURN_IF_ERROR(encoding.CheckEffort(options.reasoning_effort));
  ASSIGN_OR_RETURN(const bool offers_tools, OffersTools(messages));
  const bool drop_thinking = options.drop_thinking && !offers_tools;
  std::vector<ChatTurn> turns = MergeIntoTurns(messages, options.encoded_context);
  if (options.thinking && drop_thinking) DropEarlierThinking(&turns);
  return Renderer(encoding, options, drop_thinking, std::move(turns)).Run();
}

}  // namespace cachalot
