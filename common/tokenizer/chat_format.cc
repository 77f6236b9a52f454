#include "common/tokenizer/chat_format.h"

#include <optional>
#include <utility>

#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

constexpr std::string_view kBlockSeparator = "\n\n";  // between user messages of one turn

/// Collects marks and text. Text between two marks is encoded as a whole, since token borders do not follow
/// message borders.
class PromptBuilder {
 public:
  explicit PromptBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Text(std::string_view text) { text_ += text; }

  Status Mark(std::string_view content) {
    RETURN_IF_ERROR(Flush());
    const std::optional<int32_t> id = tokenizer_.TokenId(content);
    if (!id || !tokenizer_.IsAdded(*id)) {
      return InvalidArgument(
          tokenizer_.name() + ": has no added token '" + std::string(content) +
          "', which the chat format needs; use the tokenizer.json of a DeepSeek-V4 checkpoint");
    }
    ids_.push_back(*id);
    return OkStatus();
  }

  StatusOr<std::vector<int32_t>> Finish() {
    RETURN_IF_ERROR(Flush());
    return std::move(ids_);
  }

 private:
  Status Flush() {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer_.Encode(text_, /*parse_special=*/false));
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    text_.clear();
    return OkStatus();
  }

  const Tokenizer& tokenizer_;
  std::string text_;  // since the last mark
  std::vector<int32_t> ids_;
};

Status CheckMessages(const std::vector<ChatMessage>& messages) {
  if (messages.empty())
    return InvalidArgument("the list of messages is empty; send at least one user message");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string where = "message " + std::to_string(i);
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return InvalidArgument(where + " has the role '" + role +
                             "'; expected 'system', 'user' or 'assistant'");
    }
    if (const size_t at = FindInvalidUtf8(messages[i].content); at != std::string::npos) {
      return InvalidArgument(where + " (" + role + ") is not valid UTF-8 at byte " + std::to_string(at) +
                             " of its content; send UTF-8");
    }
  }
  return OkStatus();
}

}  // namespace

StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                          const std::vector<ChatMessage>& messages) {
  RETURN_IF_ERROR(CheckMessages(messages));
  PromptBuilder prompt(tokenizer);
  RETURN_IF_ERROR(prompt.Mark(kBeginToken));
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const std::string_view next_role = i + 1 < messages.size() ? std::string_view(messages[i + 1].role) : "";
    if (message.role == "user") {
      const bool continues_turn = i > 0 && messages[i - 1].role == "user";
      if (continues_turn) {
        prompt.Text(kBlockSeparator);
      } else {
        RETURN_IF_ERROR(prompt.Mark(kUserToken));
      }
    }
    prompt.Text(message.content);
    if (message.role == "user" && (next_role.empty() || next_role == "assistant")) {
      RETURN_IF_ERROR(prompt.Mark(kAssistantToken));
      RETURN_IF_ERROR(prompt.Mark(kThinkEndToken));
    }
    if (message.role == "assistant") RETURN_IF_ERROR(prompt.Mark(kEndToken));
  }
  return prompt.Finish();
}

StatusOr<std::vector<int32_t>> PromptForUser(const Tokenizer& tokenizer, std::string_view text) {
  return EncodeChat(tokenizer, {{"user", std::string(text)}});
}

}  // namespace cachalot
