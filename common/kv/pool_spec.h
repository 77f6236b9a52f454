#pragma once
// The KV pools of DeepSeek-V4 and their layout: one class gives the offsets that memory, snapshots and the wire use.
// Seven tagged pools (model.md 4.1); each has its own page table, and an index of one never means anything in another.

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/tensor/dtype.h"

namespace cachalot {

enum class PoolTag : uint8_t {
  kSwaKv,         // window rows, a ring over positions, every layer
  kCsaKv,         // compressed rows of ratio 4
  kIndexerKv,     // indexer keys of ratio 4
  kHcaKv,         // compressed rows of ratio 128
  kCsaState,      // (c, g + ape) of recent positions, a ring, CSA layers
  kIndexerState,  // the same of the indexer's compressor
  kHcaState,      // the same, HCA layers
};
inline constexpr int kPoolCount = 7;
std::string_view PoolName(PoolTag tag);

enum class KvLayerKind : uint8_t { kWindow, kCsa, kHca };

/// What the layout needs to know of a model.
struct KvModelShape {
  std::vector<KvLayerKind> layers;
  int head_dim = 0, index_head_dim = 0, sliding_window = 0;
  DType kv_type = DType::kF32;  // of window, compressed and indexer rows (kF32 or kBF16); state rows are fp32
};

struct PoolSpec {
  PoolTag tag{};
  std::vector<int> layers;  // model layers that have rows here, ascending
  int row_values = 0;       // values a row
  int rows_per_block = 0;   // a block holds this many rows of every layer of the pool
  bool ring = false;        // row index = position; slot = position mod rows_per_block; one block a sequence
  int ratio = 1;            // append-only pools: one row every `ratio` tokens
  DType row_type = DType::kF32;

  int64_t row_bytes() const { return DTypeBytes(row_type, row_values); }
  int64_t block_bytes() const { return static_cast<int64_t>(layers.size()) * rows_per_block * row_bytes(); }
};

/// Rows [first, first + count) of one layer of one pool; ring pools count positions.
struct RowRange {
  PoolTag pool{};
  int layer = 0;
  int64_t first = 0, count = 0;
  bool operator==(const RowRange&) const = default;
};

class KvLayout {
 public:
  /// `draft_tokens` k enlarges every ring by k rows (model.md 4.2). With a window of W, 7 rows of CSA state and
  /// 127 of HCA state at most, a continuation at n then still finds its rows after positions up to n + k have
  /// been written: a verify step of 1 + k tokens may be rolled back to any accepted length, or fail and be
  /// run again.
  explicit KvLayout(const KvModelShape& shape, int draft_tokens = 0);

  int draft_tokens() const { return draft_tokens_; }

  const PoolSpec& pool(PoolTag tag) const { return pools_[static_cast<int>(tag)]; }
  int num_layers() const { return static_cast<int>(ordinal_[0].size()); }
  /// Position of model layer `layer` among the pool's layers; -1 if the pool has none for it.
  int ordinal(PoolTag tag, int layer) const { return ordinal_[static_cast<int>(tag)][layer]; }

  /// Blocks of each pool that a sequence of up to `tokens` tokens needs.
  std::array<int, kPoolCount> BlocksFor(int64_t tokens) const;
  int64_t BytesFor(int64_t tokens) const;

  /// Rows that tokens [from, to) append to the compressed pools.
  std::vector<RowRange> AppendedRows(int64_t from, int64_t to) const;
  /// Window rows and compressor state that n tokens leave behind and a continuation reads (model.md 4.1, 4.2).
  /// They are enough for a rollback to n or more, so they do not depend on the draft tokens of either side; a
  /// longer range could name slots that rejected tokens have overwritten.
  std::vector<RowRange> StateRows(int64_t n) const;

  /// True if the row range lies inside what a sequence of n tokens may hold: the check for rows from outside.
  bool Contains(const RowRange& range, int64_t n) const;

  /// One line that names pools, widths and ring sizes: part of Compat. Rings are named without the rows for
  /// draft tokens, which never leave the process: workers that speculate and workers that do not exchange KV.
  std::string Describe() const;

 private:
  int draft_tokens_;
  std::array<PoolSpec, kPoolCount> pools_;
  std::array<std::vector<int>, kPoolCount> ordinal_;
};

}  // namespace cachalot
