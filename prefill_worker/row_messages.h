#pragma once
// Rows for a request's caller (logits, log probabilities of the prompt) in pieces, each of which becomes a
// message.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "common/sampling/logprobs.h"

namespace cachalot {

// Every peer takes 2 MiB; so many entries stay below 1 MiB.
inline constexpr int64_t kRowMessageBytes = (2 << 20) - 4096;
inline constexpr size_t kLogprobsAMessage = 4096;

/// take(first, count, rows) of tokens [from, to), piece by piece in order; all at once without logits. A row
/// larger than a message comes alone.
template <typename Take>
void SplitLogits(int64_t from, int64_t to, std::span<const float> logits, const Take& take) {
  const auto vocab = static_cast<int64_t>(logits.size()) / (to - from);
  const int64_t each =
      vocab == 0 ? to - from : std::max<int64_t>(1, kRowMessageBytes / (vocab * int64_t{sizeof(float)}));
  for (int64_t first = from; first < to; first += each) {
    const int64_t count = std::min(each, to - first);
    take(first, count, logits.subspan((first - from) * vocab, count * vocab));
  }
}

/// take(first, entries, bytes in memory), piece by piece in order.
template <typename Take>
void SplitLogprobs(int64_t first, std::vector<TokenLogprobs> entries, const Take& take) {
  for (size_t at = 0; at < entries.size(); at += kLogprobsAMessage) {
    const auto begin = entries.begin() + static_cast<ptrdiff_t>(at);
    const auto end =
        entries.begin() + static_cast<ptrdiff_t>(std::min(at + kLogprobsAMessage, entries.size()));
    std::vector<TokenLogprobs> piece(std::make_move_iterator(begin), std::make_move_iterator(end));
    int64_t bytes = 0;
    for (const TokenLogprobs& entry : piece)
      bytes += static_cast<int64_t>(sizeof(TokenLogprobs) + entry.top.size() * sizeof(TokenLogprob));
    take(first + static_cast<int64_t>(at), std::move(piece), bytes);
  }
}

}  // namespace cachalot
