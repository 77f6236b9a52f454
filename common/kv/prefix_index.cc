#include "common/kv/prefix_index.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "common/base/check.h"

namespace cachalot {
namespace {

// At this position a token costs twice what the first does. A rough figure: scores grow with a quarter of the
// position, everything else does not, and only ratios matter here.
constexpr double kDoubleCostAt = 65536;

PrefixKey KeyOf(XXH128_hash_t hash) { return {hash.low64, hash.high64}; }

}  // namespace

PrefixKey HashPrefixBlock(const PrefixKey& before, std::span<const int32_t> tokens) {
  struct {
    PrefixKey before;
    int32_t tokens[PrefixIndex::kBlockTokens];
  } block{before, {}};
  static_assert(sizeof(block) == sizeof(PrefixKey) + sizeof(int32_t) * PrefixIndex::kBlockTokens);
  CHECK(tokens.size() == static_cast<size_t>(PrefixIndex::kBlockTokens));
  std::memcpy(block.tokens, tokens.data(), tokens.size_bytes());
  return KeyOf(XXH3_128bits(&block, sizeof(block)));
}

double PrefillCost(int64_t tokens) {
  const auto n = static_cast<double>(tokens);
  return n + n * n / (2 * kDoubleCostAt);
}

double KeepValue(int64_t from, int64_t to, int64_t bytes, int64_t age) {
  return (PrefillCost(to) - PrefillCost(from)) / static_cast<double>(bytes) / static_cast<double>(1 + age);
}

PrefixIndex::PrefixIndex(Options options) : options_(options) { CHECK(options.block_bytes > 0); }

PrefixKey PrefixIndex::Root(const std::string& salt) { return KeyOf(XXH3_128bits(salt.data(), salt.size())); }

PrefixIndex::Path PrefixIndex::Walk(const PrefixKey& root, std::span<const int32_t> tokens) const {
  Path path;
  PrefixKey key = root;
  for (; tokens.size() >= kBlockTokens; tokens = tokens.subspan(kBlockTokens)) {
    const auto block = tokens.first(kBlockTokens);
    key = options_.hash(key, block);
    const auto found = by_key_.find(key);
    if (found != by_key_.end()) {
      const Node& node = nodes_[found->second];
      const bool follows = path.nodes.size() == path.keys.size() &&
                           node.parent == (path.nodes.empty() ? kNone : path.nodes.back());
      if (!follows || node.root != root || !std::equal(block.begin(), block.end(), node.tokens.begin()))
        path.collides = true;
      else
        path.nodes.push_back(found->second);
    }
    path.keys.push_back(key);
  }
  return path;
}

PrefixIndex::Match PrefixIndex::Find(const PrefixKey& root, std::span<const int32_t> tokens,
                                     int64_t at_most) const {
  const Path path = Walk(root, tokens);
  Match match{.blocks = static_cast<int64_t>(path.nodes.size()) * kBlockTokens};
  for (const Id id : path.nodes) {
    const int64_t end = nodes_[id].depth * kBlockTokens;
    if (nodes_[id].snapshot_bytes > 0 && end <= at_most) match = {match.blocks, end, id};
  }
  return match;
}

void PrefixIndex::Touch(Id node) { nodes_[node].last_used = ++clock_; }

void PrefixIndex::Pin(Id node) {
  CHECK(nodes_[node].snapshot_bytes > 0);
  ++nodes_[node].pins;
}

void PrefixIndex::Unpin(Id node) {
  CHECK(nodes_[node].pins > 0);
  --nodes_[node].pins;
}

PrefixIndex::Change PrefixIndex::Insert(const PrefixKey& root, std::span<const int32_t> tokens,
                                        int64_t snapshot_bytes) {
  CHECK(!tokens.empty() && tokens.size() % kBlockTokens == 0 && snapshot_bytes > 0);
  ++clock_;
  Change change;
  const Path path = Walk(root, tokens);
  if (path.collides) return change;
  const size_t known = path.nodes.size(), missing = path.keys.size() - known;
  Id last = known > 0 ? path.nodes.back() : kNone;
  if (missing == 0 && nodes_[last].snapshot_bytes > 0) {
    nodes_[last].last_used = clock_;
    return change;
  }
  const int64_t wanted = static_cast<int64_t>(missing) * options_.block_bytes + snapshot_bytes;
  // Nothing is freed for a prefix that could not be kept even alone.
  if (static_cast<int64_t>(known) * options_.block_bytes + wanted > options_.max_bytes) return change;
  if (!MakeRoom(wanted, snapshot_bytes, last, &change)) {
    DropDead(last, kNone, &change);
    return change;
  }
  for (size_t i = known; i < path.keys.size(); ++i) {
    last = Add(root, path.keys[i], tokens.subspan(i * kBlockTokens, kBlockTokens), last);
    change.added.push_back(last);
  }
  nodes_[last].snapshot_bytes = snapshot_bytes;
  nodes_[last].last_used = clock_;
  snapshots_.push_back(last);
  bytes_ += snapshot_bytes;
  snapshot_bytes_ += snapshot_bytes;
  change.snapshot = last;
  return change;
}

PrefixIndex::Id PrefixIndex::Add(const PrefixKey& root, const PrefixKey& key, std::span<const int32_t> tokens,
                                 Id parent) {
  Id id = static_cast<Id>(nodes_.size());
  if (free_.empty()) {
    nodes_.emplace_back();
  } else {
    id = free_.back();
    free_.pop_back();
  }
  Node& node = nodes_[id];
  node = {.root = root, .key = key, .tokens = {tokens.begin(), tokens.end()}, .parent = parent, .depth = 1};
  if (parent != kNone) {
    node.depth = nodes_[parent].depth + 1;
    ++nodes_[parent].children;
  }
  by_key_[key] = id;
  bytes_ += options_.block_bytes;
  return id;
}

/// Frees until so much more has room. `keep`: a block that stays, though its snapshot may go. False when what
/// is left is pinned.
bool PrefixIndex::MakeRoom(int64_t bytes, int64_t snapshot_bytes, Id keep, Change* change) {
  if (snapshot_bytes > options_.max_snapshot_bytes) return false;
  while (bytes_ + bytes > options_.max_bytes ||
         snapshot_bytes_ + snapshot_bytes > options_.max_snapshot_bytes) {
    const Id victim = Cheapest(keep);
    if (victim == kNone) return false;
    DropSnapshot(victim, change);
    DropDead(victim, keep, change);
  }
  return true;
}

PrefixIndex::Id PrefixIndex::Cheapest(Id keep) const {
  Id cheapest = kNone;
  double least = 0;
  for (const Id id : snapshots_) {
    if (nodes_[id].pins > 0) continue;
    const double value = ValueOf(id, keep);
    if (cheapest != kNone && value >= least) continue;
    cheapest = id;
    least = value;
  }
  return cheapest;
}

/// Of a snapshot and the blocks that would go with it.
double PrefixIndex::ValueOf(Id id, Id keep) const {
  const Node& node = nodes_[id];
  int64_t bytes = node.snapshot_bytes;
  bool alone = node.children == 0 && id != keep;
  if (alone) bytes += options_.block_bytes;
  Id at = node.parent;
  for (; at != kNone && nodes_[at].snapshot_bytes == 0; at = nodes_[at].parent) {
    alone = alone && nodes_[at].children == 1 && at != keep;
    if (alone) bytes += options_.block_bytes;
  }
  const int64_t from = at == kNone ? 0 : nodes_[at].depth * kBlockTokens;
  return KeepValue(from, node.depth * kBlockTokens, bytes, clock_ - node.last_used);
}

void PrefixIndex::DropSnapshot(Id id, Change* change) {
  Node& node = nodes_[id];
  bytes_ -= node.snapshot_bytes;
  snapshot_bytes_ -= node.snapshot_bytes;
  node.snapshot_bytes = 0;
  std::erase(snapshots_, id);
  change->freed_snapshots.push_back(id);
}

/// Frees a block behind which nothing is kept, then those before it for which that holds.
void PrefixIndex::DropDead(Id id, Id keep, Change* change) {
  while (id != kNone && id != keep && nodes_[id].children == 0 && nodes_[id].snapshot_bytes == 0) {
    Node& node = nodes_[id];
    by_key_.erase(node.key);
    bytes_ -= options_.block_bytes;
    change->freed_blocks.push_back(id);
    free_.push_back(id);
    if (node.parent != kNone) --nodes_[node.parent].children;
    id = std::exchange(node, Node()).parent;
  }
}

void PrefixIndex::CheckConsistent() const {
  std::vector<int32_t> children(nodes_.size());
  int64_t kept = 0, snapshots = 0, snapshot_bytes = 0;
  for (const Node& node : nodes_)
    if (!node.tokens.empty() && node.parent != kNone) ++children[node.parent];
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    if (node.tokens.empty()) continue;
    ++kept;
    snapshots += node.snapshot_bytes > 0;
    snapshot_bytes += node.snapshot_bytes;
    CHECK(node.children == children[id] && (node.children > 0 || node.snapshot_bytes > 0));
    CHECK(node.depth == (node.parent == kNone ? 1 : nodes_[node.parent].depth + 1));
    CHECK(node.parent == kNone || !nodes_[node.parent].tokens.empty());
    CHECK(by_key_.at(node.key) == static_cast<Id>(id));
  }
  CHECK(kept == blocks() && snapshots == this->snapshots() && snapshot_bytes == snapshot_bytes_);
  CHECK(kept + static_cast<int64_t>(free_.size()) == static_cast<int64_t>(nodes_.size()));
  CHECK(bytes_ == kept * options_.block_bytes + snapshot_bytes_);
  CHECK(bytes_ <= options_.max_bytes && snapshot_bytes_ <= options_.max_snapshot_bytes);
}

}  // namespace cachalot
