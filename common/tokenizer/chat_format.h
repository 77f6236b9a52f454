#pragma once
// Conversations as DeepSeek-V4 expects them:
//   <begin> system <User> question <Assistant></think> answer <end> <User> ...
//   thinking:                      <Assistant><think> reasoning </think> answer <end>
// The marks are special tokens found by their text in the tokenizer; what the messages say is always plain
// text. OpenAI-like requests are read by chat_request.h, answers by chat_output.h.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/tokenizer/chat_encoding.h"
#include "common/tokenizer/chat_message.h"
#include "common/tokenizer/chat_prompt.h"
#include "common/tokenizer/tokenizer.h"

namespace cachalot {

/// The prompt for `messages`, byte for byte as the model's reference encoder renders it. Neighbouring user
/// and tool messages are one turn; a user or developer turn that is last or before an assistant message opens
/// the answer; a system message may stand anywhere and has no mark, so its text runs on from its neighbour's.
/// If the last message is an assistant's, the prompt ends with its end token and asks for nothing.
/// InvalidArgument with the message's index for what cannot be rendered; FailedPrecondition for a request
/// that needs a fixed text (tools, a response format, a reasoning effort) which `encoding` does not have.
StatusOr<ChatPrompt> RenderChat(const ChatEncoding& encoding, const std::vector<ChatMessage>& messages,
                                const ChatOptions& options);

/// RenderChat and EncodePrompt.
StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer, const ChatEncoding& encoding,
                                          const std::vector<ChatMessage>& messages,
                                          const ChatOptions& options);

/// The simple case, for any checkpoint: thinking off, system, user and assistant messages with a role and
/// content only. InvalidArgument for an empty list, another role, invalid UTF-8 (all with the message's
/// index) and for a tokenizer without the marks.
StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                          const std::vector<ChatMessage>& messages);

/// EncodeChat of one user message.
StatusOr<std::vector<int32_t>> PromptForUser(const Tokenizer& tokenizer, std::string_view text);

}  // namespace cachalot
