#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/kv/pool_spec.h"

namespace cachalot {
namespace {

using Ranges = std::vector<RowRange>;

constexpr auto kWindow = KvLayerKind::kWindow, kCsa = KvLayerKind::kCsa, kHca = KvLayerKind::kHca;

Ranges Of(PoolTag tag, const Ranges& all) {
  Ranges some;
  for (const RowRange& range : all)
    if (range.pool == tag) some.push_back(range);
  return some;
}

class LayoutTest : public testing::Test {
 protected:
  const KvLayout layout_{{{kWindow, kCsa, kHca, kCsa}, 8, 4, 16}};
};

TEST_F(LayoutTest, PoolsHaveTheLayersThatNeedThem) {
  EXPECT_THAT(layout_.pool(PoolTag::kSwaKv).layers, testing::ElementsAre(0, 1, 2, 3));
  for (PoolTag tag : {PoolTag::kCsaKv, PoolTag::kIndexerKv, PoolTag::kCsaState, PoolTag::kIndexerState})
    EXPECT_THAT(layout_.pool(tag).layers, testing::ElementsAre(1, 3));
  for (PoolTag tag : {PoolTag::kHcaKv, PoolTag::kHcaState})
    EXPECT_THAT(layout_.pool(tag).layers, testing::ElementsAre(2));
  EXPECT_EQ(layout_.ordinal(PoolTag::kCsaKv, 3), 1);
  EXPECT_EQ(layout_.ordinal(PoolTag::kCsaKv, 2), -1);
  EXPECT_EQ(layout_.pool(PoolTag::kSwaKv).rows_per_block, 16);
  EXPECT_EQ(KvLayout({{kWindow}, 8, 4, 16}, 3).pool(PoolTag::kSwaKv).rows_per_block, 19);  // room for drafts
}

TEST_F(LayoutTest, BlocksFollowTheTokens) {
  const auto at = [&](PoolTag tag, int64_t tokens) {
    return layout_.BlocksFor(tokens)[static_cast<int>(tag)];
  };
  EXPECT_EQ(at(PoolTag::kCsaKv, 3), 0);
  EXPECT_EQ(at(PoolTag::kCsaKv, 4), 1);
  EXPECT_EQ(at(PoolTag::kCsaKv, 131), 1);
  EXPECT_EQ(at(PoolTag::kCsaKv, 132), 2);
  EXPECT_EQ(at(PoolTag::kHcaKv, 127), 0);
  EXPECT_EQ(at(PoolTag::kHcaKv, 1024), 1);
  EXPECT_EQ(at(PoolTag::kHcaKv, 1152), 2);
  EXPECT_EQ(at(PoolTag::kSwaKv, 100000), 1);
}

TEST_F(LayoutTest, AppendedRowsOfPiecesAddUp) {
  int64_t next[kPoolCount][4] = {};
  for (int64_t at = 0; at < 700; at += 1 + at % 37)
    for (const RowRange& range : layout_.AppendedRows(at, at + 1 + at % 37)) {
      EXPECT_EQ(range.first, next[static_cast<int>(range.pool)][range.layer]);
      next[static_cast<int>(range.pool)][range.layer] = range.first + range.count;
    }
  EXPECT_THAT(Of(PoolTag::kCsaKv, layout_.AppendedRows(0, 259)),
              testing::ElementsAre(RowRange{PoolTag::kCsaKv, 1, 0, 64}, RowRange{PoolTag::kCsaKv, 3, 0, 64}));
  EXPECT_THAT(Of(PoolTag::kHcaKv, layout_.AppendedRows(127, 257)),
              testing::ElementsAre(RowRange{PoolTag::kHcaKv, 2, 0, 2}));
  EXPECT_TRUE(layout_.AppendedRows(0, 3).empty());
  EXPECT_TRUE(Of(PoolTag::kSwaKv, layout_.AppendedRows(0, 1000)).empty());
}

TEST_F(LayoutTest, StateRowsAreWhatAContinuationReads) {
  // A window of 16 tokens includes the new one: 15 old rows. Compressor state from the last whole window of
  // ratio 4, since the next overlaps it; of ratio 128 only the tokens of the open window.
  const auto rows = [&](PoolTag tag, int64_t n) {
    const auto ranges = Of(tag, layout_.StateRows(n));
    return ranges.empty() ? std::pair<int64_t, int64_t>{0, 0} : std::pair{ranges[0].first, ranges[0].count};
  };
  using Pair = std::pair<int64_t, int64_t>;
  EXPECT_EQ(rows(PoolTag::kSwaKv, 5), Pair(0, 5));
  EXPECT_EQ(rows(PoolTag::kSwaKv, 100), Pair(85, 15));
  EXPECT_EQ(rows(PoolTag::kCsaState, 3), Pair(0, 3));
  EXPECT_EQ(rows(PoolTag::kCsaState, 8), Pair(4, 4));
  EXPECT_EQ(rows(PoolTag::kIndexerState, 11), Pair(4, 7));
  EXPECT_EQ(rows(PoolTag::kHcaState, 127), Pair(0, 127));
  EXPECT_EQ(rows(PoolTag::kHcaState, 128), Pair(0, 0));
  EXPECT_EQ(rows(PoolTag::kHcaState, 130), Pair(128, 2));
}

TEST_F(LayoutTest, ContainsChecksEveryField) {
  const RowRange good{PoolTag::kCsaKv, 1, 10, 15};
  EXPECT_TRUE(layout_.Contains(good, 100));
  EXPECT_FALSE(layout_.Contains(good, 99));
  const Ranges bad = {{static_cast<PoolTag>(7), 1, 10, 15}, {static_cast<PoolTag>(255), 1, 10, 15},
                      {PoolTag::kCsaKv, 2, 10, 15},         {PoolTag::kCsaKv, 4, 10, 15},
                      {PoolTag::kCsaKv, -1, 10, 15},        {PoolTag::kCsaKv, 1, -1, 15},
                      {PoolTag::kCsaKv, 1, 10, 0},          {PoolTag::kCsaKv, 1, 10, -1},
                      {PoolTag::kCsaKv, 1, 11, 15},         {PoolTag::kCsaKv, 1, INT64_MAX, 1},
                      {PoolTag::kCsaKv, 1, 1, INT64_MAX},   {PoolTag::kSwaKv, 0, 0, 17}};
  for (const RowRange& range : bad)
    EXPECT_FALSE(layout_.Contains(range, 100))
        << static_cast<int>(range.pool) << " " << range.layer << " " << range.first << " " << range.count;
  EXPECT_TRUE(layout_.Contains({PoolTag::kSwaKv, 0, 84, 16}, 100));  // rings count positions
}

TEST_F(LayoutTest, DescribeNamesWidthsAndRings) {
  EXPECT_EQ(
      layout_.Describe(),
      "swa_kv:F32x8x4,ring 16;csa_kv:F32x8x2;indexer_kv:F32x4x2;hca_kv:F32x8x1;csa_state:F32x32x2,ring 8;"
      "indexer_state:F32x16x2,ring 8;hca_state:F32x16x1,ring 128;");
}

}  // namespace
}  // namespace cachalot
