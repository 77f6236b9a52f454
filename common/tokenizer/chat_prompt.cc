#include "common/tokenizer/chat_prompt.h"

#include <optional>

namespace cachalot {

void ChatPrompt::Text(std::string_view text) {
  if (text.empty()) return;
  if (pieces_.empty() || pieces_.back().mark) pieces_.push_back({/*mark=*/false, ""});
  pieces_.back().text += text;
}

void ChatPrompt::Mark(std::string_view token) { pieces_.push_back({/*mark=*/true, std::string(token)}); }

std::string ChatPrompt::AsText() const {
  std::string all;
  for (const Piece& piece : pieces_) all += piece.text;
  return all;
}

StatusOr<std::vector<int32_t>> EncodePrompt(const Tokenizer& tokenizer, const ChatPrompt& prompt) {
  std::vector<int32_t> all;
  for (const ChatPrompt::Piece& piece : prompt.pieces()) {
    if (!piece.mark) {
      ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(piece.text, /*parse_special=*/false));
      all.insert(all.end(), ids.begin(), ids.end());
      continue;
    }
    const std::optional<int32_t> id = tokenizer.TokenId(piece.text);
    if (!id || !tokenizer.IsAdded(*id)) {
      return InvalidArgument(
          tokenizer.name() + ": has no added token '" + piece.text +
          "', which the chat format needs; use the tokenizer.json of a DeepSeek-V4 checkpoint");
    }
    all.push_back(*id);
  }
  return all;
}

}  // namespace cachalot
