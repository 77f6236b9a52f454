#pragma once
// A rendered prompt: plain text and marks. Only the marks become special tokens.

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
inline constexpr std::string_view kThinkBeginToken = "<think>";
inline constexpr std::string_view kThinkEndToken = "</think>";
inline constexpr std::string_view kLatestReminderToken = "<｜latest_reminder｜>";
inline constexpr std::string_view kDsmlToken = "｜DSML｜";  // inside the tags of tool calls

class ChatPrompt {
 public:
  struct Piece {
    bool mark;
    std::string text;  // of a mark: the content of its token
  };

  /// Text between two marks is one piece, since token borders do not follow message borders.
  void Text(std::string_view text);
  void Mark(std::string_view token);

  const std::vector<Piece>& pieces() const { return pieces_; }

  /// Everything as text, as the reference encoder returns it.
  std::string AsText() const;

 private:
  std::vector<Piece> pieces_;
};

/// InvalidArgument for text that Tokenizer::Encode refuses and for a tokenizer without one of the marks.
StatusOr<std::vector<int32_t>> EncodePrompt(const Tokenizer& tokenizer, const ChatPrompt& prompt);

}  // namespace cachalot
