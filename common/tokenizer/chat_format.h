#pragma once
// A conversation as DeepSeek-V4 expects it, thinking off:
//   <begin> system <User> question <Assistant></think> answer <end> <User> ...
// The marks are special tokens found by their text in the tokenizer; what the messages say is always plain
// text.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/tokenizer/tokenizer.h"

namespace cachalot {

inline constexpr std::string_view kBeginToken = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEndToken = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUserToken = "<｜User｜>";
inline constexpr std::string_view kAssistantToken = "<｜Assistant｜>";
inline constexpr std::string_view kThinkEndToken = "</think>";

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

/// The prompt for `messages`, as the model's reference encoder renders it: consecutive user messages are one
/// turn joined by an empty line; a user turn that is last or before an assistant message opens the answer; a
/// system message may stand anywhere and has no mark, so its text runs on from its neighbour's. If the last
/// message is an assistant's, the prompt ends with its end token and asks for nothing. InvalidArgument for an
/// empty list, an unknown role, invalid UTF-8 (all with the message's index) and for a tokenizer without the
/// marks.
StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                          const std::vector<ChatMessage>& messages);

/// EncodeChat of one user message.
StatusOr<std::vector<int32_t>> PromptForUser(const Tokenizer& tokenizer, std::string_view text);

}  // namespace cachalot
