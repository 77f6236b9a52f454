#pragma once
// Memory of the KV pools in blocks, and the handle that a sequence holds on its blocks.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/base/status.h"
#include "common/kv/pool_spec.h"

namespace cachalot {

class BlockPools;

/// The KV of one sequence: blocks for `capacity` tokens, given back when the handle dies. One thread at a
/// time may use it.
class SequenceKv {
 public:
  SequenceKv() = default;
  ~SequenceKv() { Release(); }
  SequenceKv(SequenceKv&& other) noexcept { *this = std::move(other); }
  SequenceKv& operator=(SequenceKv&& other) noexcept;

  bool valid() const { return pools_ != nullptr; }
  int64_t tokens() const { return tokens_; }
  int64_t capacity() const { return capacity_; }
  const KvLayout& layout() const;

  /// Takes the blocks that `tokens` tokens need beyond those it has. False, and nothing changed: a pool has
  /// too few free ones. Allocates no memory up to the `at_most` of its reservation.
  bool Grow(int64_t tokens);

  /// Row of a model layer: append-only pools by entry index, rings by position. CHECKs the bounds.
  std::byte* RowBytes(PoolTag tag, int layer, int64_t row);
  const std::byte* RowBytes(PoolTag tag, int layer, int64_t row) const {
    return const_cast<SequenceKv*>(this)->RowBytes(tag, layer, row);
  }
  /// The same of a pool whose rows are fp32 (CHECKed).
  float* Row(PoolTag tag, int layer, int64_t row);
  const float* Row(PoolTag tag, int layer, int64_t row) const {
    return const_cast<SequenceKv*>(this)->Row(tag, layer, row);
  }

  /// Rows of up to `count` tokens behind tokens() are about to be written. A step says so before its first
  /// row: the rings move on even if it fails.
  void BeginWrite(int64_t count);
  /// `count` more tokens are in every layer's rows.
  void Advance(int64_t count);
  /// Forgets everything but keeps the blocks.
  void Reset() { tokens_ = written_ = placed_ = 0; }
  /// The hand-off rows of `n` tokens (HandOffRows) have been placed from outside.
  void SetTokens(int64_t n);

  /// Drops the tokens behind the first `n` (model.md 4.2): a continuation then reads what it would have read had
  /// they never been there. OUT_OF_RANGE, nothing changed: n is negative or above tokens(); more tokens than
  /// the layout's draft tokens would go, counting also what an earlier rollback or a failed step has left in
  /// the rings; or rows needed at n were never here, because n lies before a hand-off.
  Status Rollback(int64_t n);
  /// False once a continuation at tokens() would read rows that are gone: after a failed step of more than
  /// 1 + draft tokens. Such a sequence must start over.
  bool whole() const;
  void Release();

 private:
  friend class BlockPools;
  BlockPools* pools_ = nullptr;
  std::array<std::vector<int32_t>, kPoolCount> blocks_;
  int64_t tokens_ = 0, capacity_ = 0;
  int64_t written_ = 0;  // no ring slot holds a position at or above this; at least tokens_
  int64_t placed_ = 0;   // tokens of the hand-off; its window and state rows serve no n below
};

/// RESOURCE_EXHAUSTED when BlockPools could not be made so large.
Status CheckKvMemory(const KvLayout& layout, int max_sequences, int64_t max_tokens);

/// All KV memory of a process. Thread-safe but for the rows themselves.
class BlockPools {
 public:
  /// Room for `max_sequences` sequences of `max_tokens` tokens in all. The memory is touched only when used.
  BlockPools(KvLayout layout, int max_sequences, int64_t max_tokens);
  ~BlockPools();

  /// RESOURCE_EXHAUSTED names the pool, the blocks wanted and the blocks free. `at_most`: what the sequence
  /// may grow to.
  StatusOr<SequenceKv> Reserve(int64_t tokens, int64_t at_most = 0);
  /// Whether `tokens` tokens of one sequence would fit if nobody else held a block: what does not will never
  /// be granted.
  bool CanHold(int64_t tokens) const;
  /// The most tokens for which CanHold says yes.
  int64_t total_tokens() const;

  const KvLayout& layout() const { return layout_; }
  int64_t used_blocks() const { return used_.load(std::memory_order_relaxed); }
  int64_t total_blocks() const { return total_; }
  /// Tokens that the scarcest compressed pool could still take: the load figure for placement.
  int64_t free_tokens() const;

 private:
  friend class SequenceKv;
  struct Pool {
    std::unique_ptr<std::byte[], void (*)(std::byte*)> memory{nullptr, nullptr};
    std::vector<int32_t> free;
    int32_t total = 0;
  };
  void Free(std::array<std::vector<int32_t>, kPoolCount>& blocks);
  bool Extend(std::array<std::vector<int32_t>, kPoolCount>& blocks, int64_t tokens);

  KvLayout layout_;
  mutable std::mutex mutex_;
  std::array<Pool, kPoolCount> pools_;
  std::atomic<int64_t> used_ = 0;
  int64_t total_ = 0;
};

}  // namespace cachalot
