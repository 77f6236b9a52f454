#pragma once
// Which prefixes of earlier prompts are kept, and which go when room is needed: decisions only, no rows.
//
//   block     128 tokens and their rows in the compressed pools; a tree, as prompts share beginnings
//   snapshot  window rows and compressor state at the end of a block: from there a prompt can go on
//
// A block's key is a chained hash over everything before it and a salt, but a match also compares the tokens:
// a collision costs a miss, never a wrong row. A leaf always has a snapshot, since blocks without one behind
// them serve nobody. Not thread-safe.

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace cachalot {

/// Of all tokens up to the end of a block.
struct PrefixKey {
  uint64_t low = 0, high = 0;
  bool operator==(const PrefixKey&) const = default;
};

/// XXH3-128 of the key before and the block's tokens.
PrefixKey HashPrefixBlock(const PrefixKey& before, std::span<const int32_t> tokens);

/// What computing the first `tokens` of a prompt costs, in tokens at its beginning: a token's cost grows with
/// the compressed rows before it.
double PrefillCost(int64_t tokens);

/// What a snapshot at `to` is worth a byte, when prompts would otherwise begin at `from` and it was last used
/// `age` >= 0 operations ago: computation saved, by its bytes, halved at age 1, a third at 2. The least goes
/// first.
double KeepValue(int64_t from, int64_t to, int64_t bytes, int64_t age);

class PrefixIndex {
 public:
  static constexpr int64_t kBlockTokens = 128;
  /// Of a block, while it is kept; then it may name another.
  using Id = int32_t;
  static constexpr Id kNone = -1;
  using Hash = PrefixKey (*)(const PrefixKey& before, std::span<const int32_t> tokens);

  struct Options {
    int64_t block_bytes = 0;         // of a block, tokens included
    int64_t max_bytes = 0;           // of blocks and snapshots
    int64_t max_snapshot_bytes = 0;  // of snapshots
    Hash hash = HashPrefixBlock;     // tests force collisions
  };

  struct Match {
    int64_t blocks = 0;    // tokens of the longest beginning whose blocks are all kept
    int64_t snapshot = 0;  // tokens of the longest one that ends at a snapshot; 0: none
    Id node = kNone;       // the block at whose end that is
  };

  /// What Insert changed, in this order. Ids of freed blocks may come again among the added.
  struct Change {
    std::vector<Id> freed_snapshots, freed_blocks;
    std::vector<Id> added;  // the last blocks of the prefix, in order
    Id snapshot = kNone;    // the block that got a snapshot
  };

  explicit PrefixIndex(Options options);

  /// Where prefixes of one salt begin: those of different salts never match.
  static PrefixKey Root(const std::string& salt);

  /// At most the blocks that `tokens` fill, and a snapshot at `at_most` tokens or fewer.
  Match Find(const PrefixKey& root, std::span<const int32_t> tokens, int64_t at_most) const;
  /// The snapshot of `node` was used.
  void Touch(Id node);
  /// While pinned, the snapshot of `node` and all blocks up to it stay. Counted.
  void Pin(Id node);
  void Unpin(Id node);

  /// Adds what is missing of `tokens` (whole blocks, at least one) and a snapshot of `snapshot_bytes` at
  /// their end, and frees what is worth least for it: snapshots, each with the blocks that only it needed.
  /// Adds nothing when there is no room beside what is pinned, or when keys collide.
  Change Insert(const PrefixKey& root, std::span<const int32_t> tokens, int64_t snapshot_bytes);

  /// The block before; kNone for the first.
  Id parent(Id node) const { return nodes_[node].parent; }
  int64_t bytes() const { return bytes_; }
  int64_t snapshot_bytes() const { return snapshot_bytes_; }
  int64_t blocks() const { return static_cast<int64_t>(by_key_.size()); }
  int64_t snapshots() const { return static_cast<int64_t>(snapshots_.size()); }
  /// CHECKs that everything adds up.
  void CheckConsistent() const;

 private:
  struct Node {
    PrefixKey root, key;
    std::vector<int32_t> tokens;  // empty: the slot is free
    Id parent = kNone;
    int32_t depth = 0;  // blocks from the beginning to the end of this one
    int32_t children = 0, pins = 0;
    int64_t snapshot_bytes = 0;  // 0: no snapshot
    int64_t last_used = 0;
  };
  struct KeyHash {
    size_t operator()(const PrefixKey& key) const { return key.low; }
  };
  // The kept blocks at the beginning of some tokens, and the keys of all.
  struct Path {
    std::vector<PrefixKey> keys;
    std::vector<Id> nodes;
    bool collides = false;  // some key is another prefix's
  };

  Path Walk(const PrefixKey& root, std::span<const int32_t> tokens) const;
  bool MakeRoom(int64_t bytes, int64_t snapshot_bytes, Id keep, Change* change);
  Id Cheapest(Id keep) const;
  double ValueOf(Id node, Id keep) const;
  void DropSnapshot(Id node, Change* change);
  void DropDead(Id node, Id keep, Change* change);
  Id Add(const PrefixKey& root, const PrefixKey& key, std::span<const int32_t> tokens, Id parent);

  const Options options_;
  std::vector<Node> nodes_;
  std::vector<Id> free_, snapshots_;
  std::unordered_map<PrefixKey, Id, KeyHash> by_key_;
  int64_t bytes_ = 0, snapshot_bytes_ = 0;
  int64_t clock_ = 0;  // operations
};

}  // namespace cachalot
