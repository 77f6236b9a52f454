#include "common/moe/split_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <tuple>

namespace cachalot {
namespace {

constexpr int kExperts = 20, kGroups = 8, kTopK = 6;

DispatchPlan RandomPlan(int64_t rows, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids;
  std::vector<float> weights;
  for (int64_t r = 0; r < rows; ++r) {
    std::set<int32_t> chosen;
    while (chosen.size() < kTopK) chosen.insert(static_cast<int32_t>(random() % kExperts));
    std::vector<int32_t> shuffled(chosen.begin(), chosen.end());
    std::shuffle(shuffled.begin(), shuffled.end(), random);
    ids.insert(ids.end(), shuffled.begin(), shuffled.end());
    for (int k = 0; k < kTopK; ++k) weights.push_back(static_cast<float>(random() % 1000) / 1000);
  }
  DispatchPlan plan;
  plan.Build(ids, weights, kTopK, GroupRanges::Make(kExperts, kGroups));
  return plan;
}

auto Key(const ExpertAssignment& a) { return std::tuple(a.expert, a.row, a.slot, a.weight); }

TEST(SplitPlan, EveryAssignmentAndSlotGoesToItsShardOnce) {
  PlanSplitter splitter;
  const GroupRanges ranges = GroupRanges::Make(kExperts, kGroups);
  for (int64_t rows : {1, 2, 7, 40}) {
    const DispatchPlan plan = RandomPlan(rows, rows);
    for (int shards : {1, 2, 4, 8}) {
      const auto& parts = splitter.Split(plan, kGroups, shards);
      ASSERT_EQ(static_cast<int>(parts.size()), shards);
      std::vector<ExpertAssignment> back;
      std::vector<int32_t> slots;
      for (int s = 0; s < shards; ++s) {
        const ShardPlan& part = parts[s];
        const int begin = ranges.begin[s * kGroups / shards], end = ranges.begin[(s + 1) * kGroups / shards];
        EXPECT_TRUE(std::is_sorted(part.rows.begin(), part.rows.end()));
        EXPECT_EQ(std::adjacent_find(part.rows.begin(), part.rows.end()), part.rows.end()) << "a row twice";
        EXPECT_TRUE(std::is_sorted(part.slots.begin(), part.slots.end()));
        EXPECT_TRUE(std::is_sorted(part.assignments.begin(), part.assignments.end(),
                                   [](const auto& a, const auto& b) {
                                     return std::tie(a.expert, a.row) < std::tie(b.expert, b.row);
                                   }));
        std::set<int32_t> rows_used, slots_used;
        for (const ExpertAssignment& a : part.assignments) {
          EXPECT_GE(a.expert, begin);
          EXPECT_LT(a.expert, end);
          ASSERT_LT(a.row, static_cast<int32_t>(part.rows.size()));
          ASSERT_LT(a.slot, static_cast<int32_t>(part.slots.size()));
          rows_used.insert(a.row);
          slots_used.insert(a.slot);
          back.push_back({part.rows[a.row], part.slots[a.slot], a.expert, a.weight});
        }
        EXPECT_EQ(rows_used.size(), part.rows.size());
        EXPECT_EQ(slots_used.size(), part.slots.size());
        slots.insert(slots.end(), part.slots.begin(), part.slots.end());
      }
      std::sort(slots.begin(), slots.end());
      ASSERT_EQ(static_cast<int64_t>(slots.size()), plan.slots());
      for (int32_t i = 0; i < plan.slots(); ++i) EXPECT_EQ(slots[i], i);
      ASSERT_EQ(back.size(), plan.assignments.size());
      for (size_t i = 0; i < back.size(); ++i) EXPECT_EQ(Key(back[i]), Key(plan.assignments[i])) << i;
    }
  }
}

TEST(SplitPlan, OneShardIsThePlanItself) {
  const DispatchPlan plan = RandomPlan(9, 3);
  PlanSplitter splitter;
  const auto& parts = splitter.Split(plan, kGroups, 1);
  ASSERT_EQ(parts[0].assignments.size(), plan.assignments.size());
  for (size_t i = 0; i < plan.assignments.size(); ++i)
    EXPECT_EQ(Key(parts[0].assignments[i]), Key(plan.assignments[i]));
}

TEST(SplitPlan, AShardThatNoRowMeetsGetsNothingAndNothingStaysFromBefore) {
  PlanSplitter splitter;
  splitter.Split(RandomPlan(30, 1), kGroups, 8);
  DispatchPlan plan;
  const std::vector<int32_t> ids = {0, 19};
  const std::vector<float> weights = {0.5f, 0.5f};
  plan.Build(ids, weights, 2, GroupRanges::Make(kExperts, kGroups));
  const auto& parts = splitter.Split(plan, kGroups, 8);
  for (int s = 1; s < 7; ++s) {
    EXPECT_TRUE(parts[s].empty());
    EXPECT_TRUE(parts[s].rows.empty());
    EXPECT_TRUE(parts[s].slots.empty());
  }
  EXPECT_EQ(parts[0].slots, std::vector<int32_t>{0});
  EXPECT_EQ(parts[7].slots, std::vector<int32_t>{1});
}

}  // namespace
}  // namespace cachalot
