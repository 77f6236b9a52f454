#include "prefill_worker/chunk_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int64_t> Plan(std::vector<int64_t> remaining, std::vector<int64_t> limits, int64_t budget) {
  return PlanChunk(remaining, limits, budget);
}

TEST(ChunkPlanner, NothingForNobody) { EXPECT_THAT(Plan({}, {}, 8), IsEmpty()); }

TEST(ChunkPlanner, TakesTheOldestFirst) {
  EXPECT_THAT(Plan({5, 4, 3}, {0, 0, 0}, 100), ElementsAre(5, 4, 3));
  EXPECT_THAT(Plan({5, 4, 3}, {0, 0, 0}, 7), ElementsAre(5, 2, 0));
  EXPECT_THAT(Plan({5, 4, 3}, {0, 0, 0}, 5), ElementsAre(5, 0, 0));
  EXPECT_THAT(Plan({5, 4, 3}, {0, 0, 0}, 1), ElementsAre(1, 0, 0));
}

TEST(ChunkPlanner, ALimitLeavesRoomForOthers) {
  EXPECT_THAT(Plan({50, 4, 30}, {2, 0, 1}, 8), ElementsAre(2, 4, 1));
  EXPECT_THAT(Plan({1, 50}, {7, 7}, 4), ElementsAre(1, 3));
}

TEST(ChunkPlanner, NeverExceedsBudgetRemainingOrLimitAndWastesNothing) {
  for (int64_t budget = 1; budget < 40; ++budget) {
    const std::vector<int64_t> remaining = {7, 1, 12, 3}, limits = {0, 5, 4, 2};
    const auto take = Plan(remaining, limits, budget);
    int64_t sum = 0, could = 0;
    for (size_t i = 0; i < take.size(); ++i) {
      const int64_t most = limits[i] > 0 ? std::min(remaining[i], limits[i]) : remaining[i];
      EXPECT_GE(take[i], 0);
      EXPECT_LE(take[i], most);
      sum += take[i];
      could += most;
    }
    EXPECT_EQ(sum, std::min(budget, could));
  }
}

TEST(ChunkPlanner, TakesNothingOfAJobThatIsHeldBack) {
  EXPECT_THAT(Plan({0, 4, 30}, {0, 0, 0}, 8), ElementsAre(0, 4, 4));
  EXPECT_THAT(Plan({0, 0}, {2, 0}, 8), ElementsAre(0, 0));
}

TEST(RowsThatFit, FillTheWindowAndWaitUntilHalfOfItIsRead) {
  EXPECT_EQ(RowsThatFit(0, 100, 10), 10);
  EXPECT_EQ(RowsThatFit(0, 100, 30), 3);
  EXPECT_EQ(RowsThatFit(50, 100, 10), 5);
  EXPECT_EQ(RowsThatFit(51, 100, 10), 0);
  EXPECT_EQ(RowsThatFit(100, 100, 10), 0);
}

TEST(RowsThatFit, ARowLargerThanTheWindowComesAlone) {
  EXPECT_EQ(RowsThatFit(0, 100, 101), 1);
  EXPECT_EQ(RowsThatFit(0, 1, 1000), 1);
  EXPECT_EQ(RowsThatFit(1, 100, 101), 0);
  EXPECT_EQ(RowsThatFit(101, 100, 101), 0);
  EXPECT_EQ(RowsThatFit(40, 100, 80), 0) << "beside others it would not fit";
}

TEST(SnapshotCuts, NoneBelowABlock) {
  for (int64_t tokens = 1; tokens < 128; ++tokens)
    EXPECT_THAT(SnapshotCuts(tokens, 0, 0), IsEmpty()) << tokens;
}

TEST(SnapshotCuts, BeforeTheLastTokenAndAtTheEndIfThatIsOne) {
  EXPECT_THAT(SnapshotCuts(128, 0, 0), ElementsAre(128));
  EXPECT_THAT(SnapshotCuts(129, 0, 0), ElementsAre(128));
  EXPECT_THAT(SnapshotCuts(255, 0, 0), ElementsAre(128));
  EXPECT_THAT(SnapshotCuts(256, 0, 0), ElementsAre(128, 256));
  EXPECT_THAT(SnapshotCuts(256, 128, 128), ElementsAre(256));
  EXPECT_THAT(SnapshotCuts(257, 256, 256), IsEmpty());
}

TEST(SnapshotCuts, Every4096TokensAndWhereTheCacheEnds) {
  EXPECT_THAT(SnapshotCuts(4096, 0, 0), ElementsAre(3968, 4096));
  EXPECT_THAT(SnapshotCuts(9000, 0, 640), ElementsAre(640, 4096, 8192, 8960));
  EXPECT_THAT(SnapshotCuts(9000, 4096, 4096), ElementsAre(8192, 8960));
  EXPECT_THAT(SnapshotCuts(9000, 5000, 6400), ElementsAre(6400, 8192, 8960));
  EXPECT_THAT(SnapshotCuts(700, 0, 640), ElementsAre(640)) << "each once";
}

}  // namespace
}  // namespace cachalot
