#pragma once
// The rows behind a PrefixIndex: prefixes of computed prompts, copied in at snapshot points and out into the
// KV of a prompt that begins the same way. Memory of its own, allocated as it fills. One thread uses it; the
// counters may be read from any.

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/kv/block_pool.h"
#include "common/kv/prefix_index.h"

namespace cachalot {

struct PrefixStoreOptions {
  /// Everything that must be equal for rows to mean the same: weights, mode, numerics. The layout is added.
  std::string salt;
  int64_t max_bytes = 256 << 20;
  /// Of snapshots: they must not crowd out the blocks, nor the other way round.
  int64_t max_snapshot_bytes = 128 << 20;
  PrefixIndex::Hash hash = HashPrefixBlock;
};

/// Since the start, but for the bytes.
struct PrefixStats {
  std::atomic<int64_t> hits{0}, misses{0};
  std::atomic<int64_t> hit_tokens{0};  // that were copied instead of computed
  std::atomic<int64_t> evicted_blocks{0}, evicted_snapshots{0};
  std::atomic<int64_t> bytes{0}, snapshot_bytes{0};  // now; rows and token ids
};

class PrefixStore {
 public:
  /// `layout`: of every KV that it meets; draft tokens may differ.
  PrefixStore(const KvLayout& layout, PrefixStoreOptions options);

  /// What is kept of a context's beginning, of which at most `at_most` tokens are wanted.
  PrefixIndex::Match Find(std::span<const int32_t> context, int64_t at_most) const;
  /// `kv`, empty and with room for the match's snapshot, goes on as if those tokens had been computed in it.
  /// The match is what Find just gave; without a snapshot it counts as a miss, and nothing happens.
  void Fill(const PrefixIndex::Match& match, SequenceKv* kv);
  /// Keeps `tokens`, a multiple of PrefixIndex::kBlockTokens and all that `kv` holds, if they have room.
  void Insert(std::span<const int32_t> tokens, const SequenceKv& kv);

  const PrefixStats& stats() const { return stats_; }
  const PrefixIndex& index() const { return index_; }
  int64_t block_bytes() const { return block_bytes_; }

 private:
  struct Rows {
    std::unique_ptr<std::byte[]> block, snapshot;
  };

  const KvLayout layout_;
  const PrefixKey root_;
  const int64_t block_bytes_;
  PrefixIndex index_;
  std::vector<Rows> rows_;  // by id
  PrefixStats stats_;
};

}  // namespace cachalot
