#include "common/sampling/token_history.h"

#include <algorithm>
#include <bit>

#include "common/base/check.h"

namespace cachalot {

TokenHistory::TokenHistory(std::span<const int32_t> prompt, std::span<const int32_t> output,
                           int64_t max_tokens, int vocab_size) {
  CHECK(vocab_size > 0);
  const auto known = static_cast<int64_t>(prompt.size() + output.size());
  const auto distinct = static_cast<size_t>(std::clamp<int64_t>(std::max(max_tokens, known), 1, vocab_size));
  entries_.reserve(distinct);
  slots_.assign(std::bit_ceil(2 * distinct), -1);  // at most half full
  for (int32_t id : prompt) Find(id);
  for (int32_t id : output) Add(id);
}

void TokenHistory::Add(int32_t id) {
  if (counts()) ++Find(id).in_output;
}

TokenHistory::Entry& TokenHistory::Find(int32_t id) {
  const size_t mask = slots_.size() - 1;
  // Fibonacci hashing: neighbouring ids, which are frequent, fall far apart.
  size_t at = (static_cast<uint64_t>(static_cast<uint32_t>(id)) * 0x9E3779B97F4A7C15 >> 32) & mask;
  while (slots_[at] >= 0 && entries_[slots_[at]].id != id) at = (at + 1) & mask;
  if (slots_[at] < 0) {
    CHECK(entries_.size() < entries_.capacity());
    slots_[at] = static_cast<int32_t>(entries_.size());
    entries_.push_back({id, 0});
  }
  return entries_[slots_[at]];
}

}  // namespace cachalot
