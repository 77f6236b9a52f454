#pragma once
// From messages as clients send them to turns as the model knows them: it has no tool role, results of tools
// are blocks of a user turn.

#include <cstddef>
#include <string_view>
#include <vector>

#include "common/tokenizer/chat_message.h"

namespace cachalot {

struct ChatTurn {
  struct Block {
    bool tool_result;
    std::string_view tool_call_id;
    std::string_view text;
  };

  const ChatMessage* message;  // the first of those merged into this turn; its role counts unless `is_user`
  bool is_user;                // of user and tool messages
  std::vector<Block> blocks;   // of a user turn
  bool from_context;           // rendered earlier
  bool keeps_reasoning = true;

  bool Is(std::string_view role) const { return is_user ? role == "user" : message->role == role; }
  bool asks() const { return Is("user") || Is("developer"); }

  /// A tool message has no task.
  std::string_view task() const {
    return message->role == "tool" ? std::string_view() : std::string_view(message->task);
  }
};

/// Merges neighbouring user and tool messages (not over the end of the first `context` messages, and no user
/// message into one with a task) and puts the results of tools into the order of the calls. `messages` must
/// outlive the result.
std::vector<ChatTurn> MergeIntoTurns(const std::vector<ChatMessage>& messages, size_t context);

/// The index of the last user or developer turn, or -1.
ptrdiff_t LastAskingTurn(const std::vector<ChatTurn>& turns);

/// Takes away what the model does not see of earlier exchanges: the reasoning of assistant turns and whole
/// developer turns before the last user or developer turn.
void DropEarlierThinking(std::vector<ChatTurn>* turns);

}  // namespace cachalot
