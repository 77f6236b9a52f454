#include "common/kv/prefix_store.h"

#include <cstring>
#include <utility>

#include "common/base/check.h"

namespace cachalot {
namespace {

constexpr int64_t kBlockTokens = PrefixIndex::kBlockTokens;

int64_t BytesOf(const KvLayout& layout, const std::vector<RowRange>& ranges) {
  int64_t bytes = 0;
  for (const RowRange& range : ranges) bytes += range.count * layout.pool(range.pool).row_bytes();
  return bytes;
}

std::unique_ptr<std::byte[]> CopyOut(const SequenceKv& kv, const std::vector<RowRange>& ranges) {
  std::unique_ptr<std::byte[]> rows(new std::byte[BytesOf(kv.layout(), ranges)]);
  std::byte* at = rows.get();
  for (const RowRange& range : ranges) {
    const int64_t row_bytes = kv.layout().pool(range.pool).row_bytes();
    for (int64_t r = 0; r < range.count; ++r, at += row_bytes)
      std::memcpy(at, kv.RowBytes(range.pool, range.layer, range.first + r), row_bytes);
  }
  return rows;
}

void CopyIn(const std::byte* rows, const std::vector<RowRange>& ranges, SequenceKv* kv) {
  for (const RowRange& range : ranges) {
    const int64_t row_bytes = kv->layout().pool(range.pool).row_bytes();
    for (int64_t r = 0; r < range.count; ++r, rows += row_bytes)
      std::memcpy(kv->RowBytes(range.pool, range.layer, range.first + r), rows, row_bytes);
  }
}

std::vector<RowRange> RowsOfBlock(const KvLayout& layout, int64_t block) {
  return layout.AppendedRows(block * kBlockTokens, (block + 1) * kBlockTokens);
}

int64_t BlockBytes(const KvLayout& layout) {
  return BytesOf(layout, RowsOfBlock(layout, 0)) + kBlockTokens * static_cast<int64_t>(sizeof(int32_t));
}

}  // namespace

PrefixStore::PrefixStore(const KvLayout& layout, PrefixStoreOptions options)
    : layout_(layout),
      root_(PrefixIndex::Root(options.salt + "\n" + layout.Describe())),
      block_bytes_(BlockBytes(layout)),
      index_({.block_bytes = block_bytes_,
              .max_bytes = options.max_bytes,
              .max_snapshot_bytes = options.max_snapshot_bytes,
              .hash = options.hash}) {
  CHECK(options.max_bytes >= 0 && options.max_snapshot_bytes >= 0);
}

PrefixIndex::Match PrefixStore::Find(std::span<const int32_t> context, int64_t at_most) const {
  return index_.Find(root_, context, at_most);
}

void PrefixStore::Fill(const PrefixIndex::Match& match, SequenceKv* kv) {
  if (match.snapshot == 0) {
    ++stats_.misses;
    return;
  }
  CHECK(kv->tokens() == 0);
  index_.Touch(match.node);
  CopyIn(rows_[match.node].snapshot.get(), layout_.StateRows(match.snapshot), kv);
  int64_t block = match.snapshot / kBlockTokens;
  for (PrefixIndex::Id id = match.node; id != PrefixIndex::kNone; id = index_.parent(id))
    CopyIn(rows_[id].block.get(), RowsOfBlock(layout_, --block), kv);
  CHECK(block == 0);
  kv->SetTokens(match.snapshot);
  ++stats_.hits;
  stats_.hit_tokens += match.snapshot;
}

void PrefixStore::Insert(std::span<const int32_t> tokens, const SequenceKv& kv) {
  const auto n = static_cast<int64_t>(tokens.size());
  CHECK(kv.tokens() == n);
  const auto state = layout_.StateRows(n);
  const PrefixIndex::Change change = index_.Insert(root_, tokens, BytesOf(layout_, state));
  for (const PrefixIndex::Id id : change.freed_snapshots) rows_[id].snapshot.reset();
  for (const PrefixIndex::Id id : change.freed_blocks) rows_[id].block.reset();
  int64_t block = n / kBlockTokens - static_cast<int64_t>(change.added.size());
  for (const PrefixIndex::Id id : change.added) {
    if (static_cast<size_t>(id) >= rows_.size()) rows_.resize(id + 1);
    rows_[id].block = CopyOut(kv, RowsOfBlock(layout_, block++));
  }
  if (change.snapshot != PrefixIndex::kNone) rows_[change.snapshot].snapshot = CopyOut(kv, state);
  stats_.evicted_snapshots += static_cast<int64_t>(change.freed_snapshots.size());
  stats_.evicted_blocks += static_cast<int64_t>(change.freed_blocks.size());
  stats_.bytes = index_.bytes();
  stats_.snapshot_bytes = index_.snapshot_bytes();
}

}  // namespace cachalot
