#include "common/tokenizer/chat_request.h"

#include <utility>

#include "common/tokenizer/python_json.h"

namespace cachalot {
namespace {

using Kind = PythonJson::Kind;

/// The member, or null if it is absent or JSON's null.
const PythonJson* Given(const PythonJson& object, std::string_view key) {
  const PythonJson* value = object.Find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Status ReadString(const PythonJson& object, const char* key, std::string* out) {
  const PythonJson* value = Given(object, key);
  if (value == nullptr) return OkStatus();
  if (!value->is_string()) return InvalidArgument(std::string(key) + " is no string");
  *out = value->text;
  return OkStatus();
}

Status ReadBool(const PythonJson& object, const char* key, bool* out) {
  const PythonJson* value = Given(object, key);
  if (value == nullptr) return OkStatus();
  if (value->kind != Kind::kTrue && value->kind != Kind::kFalse) {
    return InvalidArgument(std::string(key) + " is neither true nor false");
  }
  *out = value->kind == Kind::kTrue;
  return OkStatus();
}

/// A list is joined by empty lines, as blocks of a user turn are. Of a tool's result only text can be shown;
/// elsewhere other parts are refused, since dropping them would change what the user asks.
StatusOr<std::string> Content(const PythonJson& message, bool is_tool) {
  std::string text;
  const PythonJson* content = Given(message, "content");
  if (content == nullptr || !content->is_array()) {
    RETURN_IF_ERROR(ReadString(message, "content", &text));
    return text;
  }
  for (size_t i = 0; i < content->items.size(); ++i) {
    const PythonJson& part = content->items[i];
    std::string type, part_text;
    RETURN_IF_ERROR(ReadString(part, "type", &type));
    RETURN_IF_ERROR(ReadString(part, "text", &part_text));
    if (type != "text" && !is_tool) {
      return InvalidArgument("content[" + std::to_string(i) + "] has the type '" + type +
                             "'; only 'text' is supported");
    }
    text += (i > 0 ? "\n\n" : "") + (type == "text" ? part_text : "[Unsupported " + type + "]");
  }
  return text;
}

StatusOr<ToolCall> ReadToolCall(const PythonJson& entry) {
  ToolCall call;
  RETURN_IF_ERROR(ReadString(entry, "id", &call.id));
  const PythonJson* function = Given(entry, "function");
  if (function == nullptr || !function->is_object() || Given(*function, "name") == nullptr) {
    return InvalidArgument("expected {\"id\": .., \"function\": {\"name\": .., \"arguments\": ..}}");
  }
  RETURN_IF_ERROR(ReadString(*function, "name", &call.name));
  const PythonJson* arguments = Given(*function, "arguments");
  if (arguments != nullptr && arguments->is_object()) {  // some clients do not turn it into a string
    call.arguments = arguments->Dump();
    return call;
  }
  if (arguments == nullptr) return InvalidArgument("function.arguments is missing");
  RETURN_IF_ERROR(ReadString(*function, "arguments", &call.arguments));
  return call;
}

Status ReadToolCalls(const PythonJson& message, std::vector<ToolCall>* calls) {
  const PythonJson* list = Given(message, "tool_calls");
  if (list == nullptr) return OkStatus();
  if (!list->is_array()) return InvalidArgument("tool_calls is no array");
  for (size_t i = 0; i < list->items.size(); ++i) {
    StatusOr<ToolCall> call = ReadToolCall(list->items[i]);
    if (!call.ok()) return Annotate(call.status(), "tool_calls[" + std::to_string(i) + "]");
    calls->push_back(std::move(*call));
  }
  return OkStatus();
}

/// A truthy JSON value as text, else "".
std::string AsText(const PythonJson* value) {
  return value != nullptr && value->truthy() ? value->Dump() : std::string();
}

StatusOr<ChatMessage> ReadMessage(const PythonJson& entry) {
  if (!entry.is_object()) return InvalidArgument("is no object");
  ChatMessage message;
  RETURN_IF_ERROR(ReadString(entry, "role", &message.role));
  ASSIGN_OR_RETURN(message.content, Content(entry, message.role == "tool"));
  RETURN_IF_ERROR(ReadString(entry, "reasoning", &message.reasoning));
  RETURN_IF_ERROR(ReadString(entry, "reasoning_content", &message.reasoning));
  RETURN_IF_ERROR(ReadToolCalls(entry, &message.tool_calls));
  RETURN_IF_ERROR(ReadString(entry, "tool_call_id", &message.tool_call_id));
  RETURN_IF_ERROR(ReadString(entry, "task", &message.task));
  RETURN_IF_ERROR(ReadBool(entry, "wo_eos", &message.without_end));
  message.tools = AsText(Given(entry, "tools"));
  message.response_format = AsText(Given(entry, "response_format"));
  return message;
}

Status ReadThinking(const PythonJson& object, ChatOptions* options) {
  const PythonJson* thinking = Given(object, "thinking");
  if (thinking == nullptr || !thinking->is_object()) return ReadBool(object, "thinking", &options->thinking);
  std::string type;
  RETURN_IF_ERROR(ReadString(*thinking, "type", &type));
  if (type != "enabled" && type != "disabled") {
    return InvalidArgument("thinking.type is '" + type + "'; expected 'enabled' or 'disabled'");
  }
  options->thinking = type == "enabled";
  return OkStatus();
}

Status ReadOptions(const PythonJson& object, ChatOptions* options) {
  RETURN_IF_ERROR(ReadThinking(object, options));
  RETURN_IF_ERROR(ReadString(object, "reasoning_effort", &options->reasoning_effort));
  return ReadBool(object, "drop_thinking", &options->drop_thinking);
}

/// What the model sees of the request's response_format, as JSON.
StatusOr<std::string> ResponseSchema(const PythonJson& body) {
  const PythonJson* format = Given(body, "response_format");
  if (format == nullptr) return std::string();
  std::string type;
  RETURN_IF_ERROR(ReadString(*format, "type", &type));
  if (type == "text" || type == "json_object") return std::string();
  const PythonJson* wrapper = Given(*format, "json_schema");
  const PythonJson* schema = wrapper == nullptr ? nullptr : Given(*wrapper, "schema");
  if (type != "json_schema" || schema == nullptr) {
    return InvalidArgument(
        "response_format: expected {\"type\": \"text\"}, {\"type\": \"json_object\"} or "
        "{\"type\": \"json_schema\", \"json_schema\": {\"schema\": {..}}}");
  }
  return AsText(schema);
}

/// Puts the request's own tools and response format where the model expects them.
Status Attach(const PythonJson& body, std::vector<ChatMessage>* messages) {
  const std::string tools = AsText(Given(body, "tools"));
  ASSIGN_OR_RETURN(const std::string schema, ResponseSchema(body));
  if ((tools.empty() && schema.empty()) || messages->empty()) return OkStatus();
  const std::string& role = messages->front().role;
  if (role != "system" && role != "developer") messages->insert(messages->begin(), ChatMessage{"system", ""});
  ChatMessage& first = messages->front();
  if (!(tools.empty() || first.tools.empty()) || !(schema.empty() || first.response_format.empty())) {
    return InvalidArgument(
        "tools and response_format stand in the request and in messages[0]; send them once");
  }
  if (!tools.empty()) first.tools = tools;
  if (!schema.empty()) first.response_format = schema;
  return OkStatus();
}

}  // namespace

StatusOr<ChatRequest> ParseChatRequest(std::string_view body, const ChatOptions& defaults) {
  ASSIGN_OR_RETURN(const PythonJson root, PythonJson::Parse(body));
  const PythonJson* messages = Given(root, "messages");
  if (messages == nullptr || !messages->is_array()) return InvalidArgument("messages is missing or no array");
  ChatRequest request{{}, defaults};
  for (size_t i = 0; i < messages->items.size(); ++i) {
    StatusOr<ChatMessage> message = ReadMessage(messages->items[i]);
    if (!message.ok()) return Annotate(message.status(), "messages[" + std::to_string(i) + "]");
    request.messages.push_back(std::move(*message));
  }
  RETURN_IF_ERROR(Attach(root, &request.messages));
  RETURN_IF_ERROR(ReadOptions(root, &request.options));
  if (const PythonJson* extra = Given(root, "chat_template_kwargs")) {
    RETURN_IF_ERROR(ReadBool(*extra, "enable_thinking", &request.options.thinking));
    RETURN_IF_ERROR(ReadOptions(*extra, &request.options));
  }
  return request;
}

StatusOr<std::vector<int32_t>> EncodeChatRequest(const Tokenizer& tokenizer, const ChatEncoding& encoding,
                                                 std::string_view body, const ChatOptions& defaults) {
  ASSIGN_OR_RETURN(const ChatRequest request, ParseChatRequest(body, defaults));
  return EncodeChat(tokenizer, encoding, request.messages, request.options);
}

}  // namespace cachalot
