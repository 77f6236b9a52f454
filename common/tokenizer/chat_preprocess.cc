#include "common/tokenizer/chat_preprocess.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace cachalot {
namespace {

using CallOrder = std::unordered_map<std::string_view, size_t>;  // id of a call -> its place

/// Results of calls that are not known stay in front, as if they answered the first call: so does the
/// reference encoder.
void SortToolResults(const CallOrder& order, std::vector<ChatTurn::Block>* blocks) {
  std::vector<std::pair<size_t, ChatTurn::Block>> results;
  for (const ChatTurn::Block& block : *blocks) {
    if (!block.tool_result) continue;
    const auto place = order.find(block.tool_call_id);
    results.emplace_back(place == order.end() ? 0 : place->second, block);
  }
  std::stable_sort(results.begin(), results.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  auto next = results.begin();
  for (ChatTurn::Block& block : *blocks) {
    if (block.tool_result) block = (next++)->second;
  }
}

}  // namespace

std::vector<ChatTurn> MergeIntoTurns(const std::vector<ChatMessage>& messages, size_t context) {
  std::vector<ChatTurn> turns;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool is_tool = message.role == "tool";
    const bool is_user = is_tool || message.role == "user";
    if (!is_user) {
      turns.push_back({&message, false, {}, i < context});
      continue;
    }
    // The task of a user message that is merged is lost, as in the reference encoder.
    const bool merges =
        !turns.empty() && turns.back().is_user && i != context && (is_tool || turns.back().task().empty());
    if (!merges) turns.push_back({&message, true, {}, i < context});
    turns.back().blocks.push_back({is_tool, message.tool_call_id, message.content});
  }
  CallOrder order;
  for (ChatTurn& turn : turns) {
    if (turn.is_user) {
      if (!order.empty()) SortToolResults(order, &turn.blocks);
    } else if (turn.message->role == "assistant" && !turn.message->tool_calls.empty()) {
      order.clear();
      const std::vector<ToolCall>& calls = turn.message->tool_calls;
      for (size_t i = 0; i < calls.size(); ++i) {
        if (!calls[i].id.empty()) order[calls[i].id] = i;
      }
    }
  }
  return turns;
}

ptrdiff_t LastAskingTurn(const std::vector<ChatTurn>& turns) {
  for (ptrdiff_t i = static_cast<ptrdiff_t>(turns.size()) - 1; i >= 0; --i) {
    if (turns[i].asks()) return i;
  }
  return -1;
}

void DropEarlierThinking(std::vector<ChatTurn>* turns) {
  const ptrdiff_t last = LastAskingTurn(*turns);
  std::vector<ChatTurn> kept;
  for (ptrdiff_t i = 0; i < static_cast<ptrdiff_t>(turns->size()); ++i) {
    ChatTurn& turn = (*turns)[i];
    if (i < last && turn.Is("developer")) continue;
    if (i < last && turn.Is("assistant")) turn.keeps_reasoning = false;
    kept.push_back(std::move(turn));
  }
  *turns = std::move(kept);
}

}  // namespace cachalot
