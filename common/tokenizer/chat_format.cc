#include "common/tokenizer/chat_format.h"

namespace cachalot {

StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer, const ChatEncoding& encoding,
                                          const std::vector<ChatMessage>& messages,
                                          const ChatOptions& options) {
  ASSIGN_OR_RETURN(const ChatPrompt prompt, RenderChat(encoding, messages, options));
  return EncodePrompt(tokenizer, prompt);
}

StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                          const std::vector<ChatMessage>& messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return InvalidArgument("message " + std::to_string(i) + " has the role '" + role +
                             "'; expected 'system', 'user' or 'assistant'");
    }
  }
  return EncodeChat(tokenizer, ChatEncoding::Missing(std::string(kChatEncodingFile)), messages, {});
}

StatusOr<std::vector<int32_t>> PromptForUser(const Tokenizer& tokenizer, std::string_view text) {
  return EncodeChat(tokenizer, {{"user", std::string(text)}});
}

}  // namespace cachalot
