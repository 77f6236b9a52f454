#include "common/kv/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace cachalot {
namespace {

KvLayout Layout() {
  return KvLayout({{KvLayerKind::kWindow, KvLayerKind::kCsa, KvLayerKind::kHca}, 8, 4, 16});
}

TEST(BlockPools, ReserveCountsAndReleaseGivesBack) {
  BlockPools pools(Layout(), 4, 1024);
  EXPECT_EQ(pools.used_blocks(), 0);
  const int64_t free = pools.free_tokens();
  EXPECT_GE(free, 1024);
  SequenceKv kv = *pools.Reserve(256);
  EXPECT_EQ(kv.capacity(), 256);
  EXPECT_EQ(kv.tokens(), 0);
  EXPECT_EQ(pools.used_blocks(), 4 + 2 + 2 + 1);  // rings, csa_kv, indexer_kv, hca_kv
  EXPECT_EQ(pools.free_tokens(), free - 256);
  kv.Release();
  EXPECT_FALSE(kv.valid());
  kv.Release();  // again
  EXPECT_EQ(pools.used_blocks(), 0);
  EXPECT_EQ(pools.free_tokens(), free);
}

TEST(BlockPools, ARefusalNamesThePoolAndTakesNothing) {
  BlockPools pools(Layout(), 2, 512);
  const SequenceKv first = *pools.Reserve(512);
  const int64_t used = pools.used_blocks();
  const auto refused = pools.Reserve(512);
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(refused.status()), testing::HasSubstr("csa_kv"));
  EXPECT_EQ(pools.used_blocks(), used);
  const SequenceKv second = *pools.Reserve(1);
  const auto third = pools.Reserve(1);  // no ring is left
  EXPECT_EQ(third.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(third.status()), testing::HasSubstr("swa_kv"));
  EXPECT_EQ(pools.free_tokens(), 0);
}

TEST(BlockPools, EverySequenceGetsAllTokensItWasPromised) {
  BlockPools pools(Layout(), 3, 3 * 100);
  const SequenceKv a = *pools.Reserve(100), b = *pools.Reserve(100);
  EXPECT_TRUE(pools.Reserve(100).ok());
}

TEST(BlockPools, GrowTakesWhatIsMissingOrNothing) {
  BlockPools pools(Layout(), 2, 1024);  // 10 blocks of csa_kv
  SequenceKv a = *pools.Reserve(100, 1280), b = *pools.Reserve(128);
  EXPECT_EQ(pools.used_blocks(), 2 * 4 + 2 * 2 + 1);  // rings, csa_kv and indexer_kv; a row of hca_kv
  EXPECT_TRUE(a.Grow(90));
  EXPECT_EQ(a.capacity(), 100);
  EXPECT_TRUE(a.Grow(128));                // its block has room
  EXPECT_EQ(pools.used_blocks(), 13 + 1);  // a row of hca_kv
  const float* row = a.Row(PoolTag::kCsaKv, 1, 3);
  EXPECT_TRUE(a.Grow(1152));
  EXPECT_EQ(a.capacity(), 1152);
  EXPECT_EQ(a.Row(PoolTag::kCsaKv, 1, 3), row) << "what it has stays where it is";
  a.Row(PoolTag::kCsaKv, 1, 287)[0] = 1;
  const int64_t used = pools.used_blocks();
  EXPECT_FALSE(a.Grow(1280));
  EXPECT_EQ(a.capacity(), 1152);
  EXPECT_EQ(pools.used_blocks(), used);
  b.Release();
  EXPECT_TRUE(a.Grow(1280));
  a.Release();
  EXPECT_EQ(pools.used_blocks(), 0);
}

TEST(BlockPools, CanHoldIsWhatAnEmptyPoolGrants) {
  BlockPools pools(Layout(), 3, 700);
  EXPECT_EQ(pools.total_tokens(), (700 / 128 + 3) * 128 + 3);
  const int64_t most = pools.total_tokens();
  for (const int64_t tokens : {int64_t{1}, most - 1, most, most + 1, 10 * most}) {
    EXPECT_EQ(pools.CanHold(tokens), pools.Reserve(tokens).ok()) << tokens;
    EXPECT_EQ(pools.CanHold(tokens), tokens <= most) << tokens;
  }
}

TEST(SequenceKv, RowsAreDisjointAndRingsWrap) {
  BlockPools pools(Layout(), 2, 1024);
  SequenceKv a = *pools.Reserve(300), b = *pools.Reserve(300);
  std::set<const float*> rows;
  for (SequenceKv* kv : {&a, &b}) {
    for (int layer = 0; layer < 3; ++layer)
      for (int64_t p = 0; p < 16; ++p) {
        float* row = kv->Row(PoolTag::kSwaKv, layer, p);
        EXPECT_TRUE(rows.insert(row).second);
        EXPECT_EQ(kv->Row(PoolTag::kSwaKv, layer, p + 160), row);
      }
    for (int64_t r = 0; r < 300 / 4; ++r) EXPECT_TRUE(rows.insert(kv->Row(PoolTag::kCsaKv, 1, r)).second);
    for (int64_t r = 0; r < 300 / 128; ++r) EXPECT_TRUE(rows.insert(kv->Row(PoolTag::kHcaKv, 2, r)).second);
    for (int64_t p = 0; p < 128; ++p) EXPECT_TRUE(rows.insert(kv->Row(PoolTag::kHcaState, 2, p)).second);
    EXPECT_EQ(kv->Row(PoolTag::kHcaState, 2, 128), kv->Row(PoolTag::kHcaState, 2, 0));
  }
}

TEST(SequenceKv, MovingHandsTheBlocksOver) {
  BlockPools pools(Layout(), 2, 1024);
  SequenceKv a = *pools.Reserve(256);
  a.Advance(7);
  const int64_t used = pools.used_blocks();
  SequenceKv b = std::move(a);
  EXPECT_FALSE(a.valid());
  EXPECT_EQ(b.tokens(), 7);
  SequenceKv c = *pools.Reserve(256);
  c = std::move(b);  // gives back its own
  EXPECT_EQ(pools.used_blocks(), used);
  c.Reset();
  EXPECT_EQ(c.tokens(), 0);
  EXPECT_EQ(c.capacity(), 256);
  c = SequenceKv();
  EXPECT_EQ(pools.used_blocks(), 0);
}

TEST(SequenceKvDeathTest, BoundsAreChecked) {
  BlockPools pools(Layout(), 1, 256);
  SequenceKv kv = *pools.Reserve(128);
  EXPECT_DEATH(kv.Row(PoolTag::kCsaKv, 1, 32), "page");
  EXPECT_DEATH(kv.Row(PoolTag::kCsaKv, 0, 0), "ordinal");
  EXPECT_DEATH(kv.Row(PoolTag::kSwaKv, 0, -1), "row");
  EXPECT_DEATH(kv.Advance(129), "capacity");
}

}  // namespace
}  // namespace cachalot
