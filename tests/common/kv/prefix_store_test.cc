// Rows of the prefix cache: what goes in comes out, and nothing else.

#include "common/kv/prefix_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/kv/transfer_frame.h"

namespace cachalot {
namespace {

constexpr int64_t kBlock = PrefixIndex::kBlockTokens;

KvLayout Layout(DType type = DType::kF32, int window = 16, int drafts = 0) {
  return KvLayout({{KvLayerKind::kWindow, KvLayerKind::kCsa, KvLayerKind::kHca}, 8, 4, window, type}, drafts);
}

std::vector<int32_t> Tokens(int64_t count, int32_t first = 0) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = first + static_cast<int32_t>(i);
  return ids;
}

/// A sequence whose hand-off rows at n say where they belong and whose they are.
SequenceKv Written(BlockPools* pools, int64_t n, int owner) {
  SequenceKv kv = *pools->Reserve(n + 64);
  for (const RowRange& range : HandOffRows(kv.layout(), n))
    for (int64_t r = 0; r < range.count; ++r) {
      std::byte* row = kv.RowBytes(range.pool, range.layer, range.first + r);
      for (int64_t i = 0; i < kv.layout().pool(range.pool).row_bytes(); ++i)
        row[i] = static_cast<std::byte>(owner * 91 + static_cast<int>(range.pool) * 37 + range.layer * 17 +
                                        (range.first + r) * 5 + i);
    }
  kv.SetTokens(n);
  return kv;
}

bool SameRows(const SequenceKv& a, const SequenceKv& b, int64_t n) {
  for (const RowRange& range : HandOffRows(a.layout(), n))
    for (int64_t r = 0; r < range.count; ++r)
      if (std::memcmp(a.RowBytes(range.pool, range.layer, range.first + r),
                      b.RowBytes(range.pool, range.layer, range.first + r),
                      a.layout().pool(range.pool).row_bytes()) != 0)
        return false;
  return true;
}

TEST(PrefixStore, GivesBackTheHandOffRowsOfEverySnapshot) {
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const int window : {16, 128, 200}) {
      BlockPools pools(Layout(type, window), 8, 8192);
      PrefixStore store(pools.layout(), {.salt = "s"});
      const auto ids = Tokens(1500);
      for (int64_t n = kBlock; n <= 11 * kBlock; n += kBlock) {
        const SequenceKv kv = Written(&pools, n, 0);
        store.Insert(std::span(ids).first(n), kv);
      }
      for (int64_t n = kBlock; n <= 11 * kBlock; n += kBlock) {
        const auto match = store.Find(std::span(ids).first(n + 1), n);
        ASSERT_EQ(match.snapshot, n);
        SequenceKv kv = *pools.Reserve(n + 64);
        store.Fill(match, &kv);
        EXPECT_EQ(kv.tokens(), n);
        EXPECT_TRUE(SameRows(kv, Written(&pools, n, 0), n)) << n << " window " << window;
      }
      EXPECT_EQ(store.stats().hits, 11);
      EXPECT_EQ(store.stats().hit_tokens, 66 * kBlock);
      store.index().CheckConsistent();
    }
}

TEST(PrefixStore, AKvWithRoomForDraftsTakesTheSameRows) {
  BlockPools plain(Layout(), 2, 2048), drafts(Layout(DType::kF32, 16, 3), 2, 2048);
  PrefixStore store(plain.layout(), {.salt = "s"});
  const auto ids = Tokens(300);
  store.Insert(std::span(ids).first(256), Written(&plain, 256, 1));
  SequenceKv kv = *drafts.Reserve(300);
  store.Fill(store.Find(ids, 299), &kv);
  EXPECT_TRUE(SameRows(Written(&plain, 256, 1), kv, 256));
}

TEST(PrefixStore, CountsItsBytesAndEvictsUnderABudget) {
  BlockPools pools(Layout(), 4, 4096);
  PrefixStore all(pools.layout(), {.salt = "s"});
  all.Insert(Tokens(256), Written(&pools, 256, 1));
  const int64_t one = all.stats().bytes, snapshot = all.stats().snapshot_bytes;
  EXPECT_EQ(one, 2 * all.block_bytes() + snapshot);
  // fp32 rows of 8 and 4 values: 32 of each for ratio 4, one for ratio 128, and 128 token ids.
  EXPECT_EQ(all.block_bytes(), 4 * (32 * 8 + 32 * 4 + 8) + 512);
  // 15 rows of 3 layers, 4 of the two states of ratio 4.
  EXPECT_EQ(snapshot, 4 * (15 * 3 * 8 + 4 * 32 + 4 * 16));

  PrefixStore store(pools.layout(), {.salt = "s", .max_bytes = 2 * one, .max_snapshot_bytes = 2 * snapshot});
  for (int owner = 0; owner < 20; ++owner) {
    store.Insert(Tokens(256, owner * 1000), Written(&pools, 256, owner));
    EXPECT_LE(store.stats().bytes, 2 * one);
    const auto ids = Tokens(257, owner * 1000);
    const auto match = store.Find(ids, 256);
    ASSERT_EQ(match.snapshot, 256);
    SequenceKv kv = *pools.Reserve(257);
    store.Fill(match, &kv);
    EXPECT_TRUE(SameRows(kv, Written(&pools, 256, owner), 256)) << "slots are used again";
  }
  EXPECT_EQ(store.stats().evicted_snapshots, 18);
  EXPECT_EQ(store.stats().evicted_blocks, 36);
  store.index().CheckConsistent();
}

TEST(PrefixStore, SaltAndLayoutKeepRowsApart) {
  BlockPools pools(Layout(), 2, 1024);
  const auto ids = Tokens(129);
  PrefixStore store(pools.layout(), {.salt = "weights exact"});
  store.Insert(std::span(ids).first(128), Written(&pools, 128, 1));
  EXPECT_EQ(store.Find(ids, 128).snapshot, 128);
  // What keys such a store would look under.
  const auto root = [](const std::string& salt, const KvLayout& layout) {
    return PrefixIndex::Root(salt + "\n" + layout.Describe());
  };
  EXPECT_EQ(store.index().Find(root("weights exact", Layout()), ids, 128).snapshot, 128);
  EXPECT_EQ(store.index().Find(root("weights bf16", Layout()), ids, 128).blocks, 0);
  EXPECT_EQ(store.index().Find(root("weights exact", Layout(DType::kBF16)), ids, 128).blocks, 0);
}

TEST(PrefixStore, WithoutAMatchNothingHappens) {
  BlockPools pools(Layout(), 1, 1024);
  PrefixStore store(pools.layout(), {.salt = "s"});
  SequenceKv kv = *pools.Reserve(200);
  store.Fill(store.Find(Tokens(200), 199), &kv);
  EXPECT_EQ(kv.tokens(), 0);
  EXPECT_EQ(store.stats().misses, 1);
}

}  // namespace
}  // namespace cachalot
