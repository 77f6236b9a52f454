#pragma once
// How often a sequence has each token so far: what penalties depend on. A pure function of prompt and output,
// so that a sequence that moves to another worker is counted again there and goes on with the same tokens.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cachalot {

class TokenHistory {
 public:
  struct Entry {
    int32_t id = 0;
    int32_t in_output = 0;  // times; 0: only the prompt has it
  };

  /// Counts nothing, and Add does nothing: for sequences without penalties.
  TokenHistory() = default;
  /// Has room for `max_tokens` tokens of a vocabulary of `vocab_size`: Add does not allocate then.
  TokenHistory(std::span<const int32_t> prompt, std::span<const int32_t> output, int64_t max_tokens,
               int vocab_size);

  /// The next output token.
  void Add(int32_t id);
  bool counts() const { return !slots_.empty(); }
  /// Every token that the sequence has, once; in the order in which they came first.
  std::span<const Entry> entries() const { return entries_; }

 private:
  Entry& Find(int32_t id);

  std::vector<Entry> entries_;
  std::vector<int32_t> slots_;  // open addressing, a power of two: index into entries_, or -1
};

}  // namespace cachalot
