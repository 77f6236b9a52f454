#pragma once
// The chat part of an OpenAI-like request body.

#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/tokenizer/chat_format.h"

namespace cachalot {

struct ChatRequest {
  std::vector<ChatMessage> messages;
  ChatOptions options;
};

/// Reads
///   messages: role, content (a string, null or a list of {"type": "text", "text": ..}), reasoning_content
///   (or
///     reasoning), tool_calls, tool_call_id, task, wo_eos, tools, response_format
///   tools, response_format: for the whole conversation; they go to the first message if that is a system or
///     developer message, else to an empty system message before it. Of {"type": "json_schema"} the model
///     sees the schema; "text" and "json_object" add nothing.
///   reasoning_effort, drop_thinking; thinking as a bool or {"type": "enabled" | "disabled"}; the same and
///     enable_thinking inside chat_template_kwargs
/// and leaves every other field to the caller. `defaults` hold where the body says nothing. InvalidArgument
/// with the field's name.
StatusOr<ChatRequest> ParseChatRequest(std::string_view body, const ChatOptions& defaults = {});

/// ParseChatRequest and EncodeChat: from an OpenAI-like body to ids.
StatusOr<std::vector<int32_t>> EncodeChatRequest(const Tokenizer& tokenizer, const ChatEncoding& encoding,
                                                 std::string_view body, const ChatOptions& defaults = {});

}  // namespace cachalot
