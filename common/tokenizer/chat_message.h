#pragma once
// A conversation as clients send it. What a message says is always plain text, never a mark.

#include <cstddef>
#include <string>
#include <vector>

namespace cachalot {

/// The model asked for a function.
struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // a JSON object as text
};

struct ChatMessage {
  std::string role;  // system, developer, user, assistant, tool or latest_reminder
  std::string content;

  // Of an assistant message.
  std::string reasoning;
  std::vector<ToolCall> tool_calls;
  bool without_end = false;  // the answer goes on: no end token after it

  // Of a tool message: which call it answers.
  std::string tool_call_id;

  // Of a system or developer message, JSON texts: an array of {"type": "function", "function": {..}}, and the
  // schema that answers must have.
  std::string tools;
  std::string response_format;

  // Asks for a short internal answer: action, query, authority, domain, title or read_url.
  std::string task;
};

struct ChatOptions {
  bool thinking = false;
  std::string reasoning_effort;  // empty: the checkpoint's default; its levels depend on the checkpoint
  bool drop_thinking = true;     // reasoning before the last user turn leaves the prompt
  bool begin = true;             // starts with the begin token
  size_t encoded_context = 0;    // so many first messages are in the model already and are not rendered again
};

}  // namespace cachalot
