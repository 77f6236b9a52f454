#include "router/retry_budget.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

using std::chrono::milliseconds, std::chrono::seconds;

constexpr TimePoint kStart{seconds(1000)};

TEST(RetryBudgetTest, TriesThatWereTakenCount) {
  RetryBudget budget(3, seconds(10));
  EXPECT_TRUE(budget.Failed(kStart, false));
  EXPECT_EQ(budget.not_before(), kStart) << "at once";
  EXPECT_TRUE(budget.Failed(kStart + seconds(1), false));
  EXPECT_FALSE(budget.Failed(kStart + seconds(2), false));
}

TEST(RetryBudgetTest, NobodyCostsNothingForAWhileAndIsAskedLaterAndLater) {
  RetryBudget budget(1, seconds(10));
  TimePoint now = kStart;
  Duration pause = milliseconds(20);
  while (now - kStart < seconds(10)) {
    ASSERT_TRUE(budget.Failed(now, true));
    EXPECT_EQ(budget.not_before(), now + pause);
    EXPECT_EQ(budget.end(now), kStart + seconds(10));
    now = budget.not_before();
    pause = std::min<Duration>(2 * pause, seconds(1));
  }
  EXPECT_FALSE(budget.Failed(now, true));
}

TEST(RetryBudgetTest, TheWaitBeginsWithTheLossAndAnewWithEveryLoss) {
  RetryBudget budget(4, seconds(10));
  EXPECT_EQ(budget.end(kStart), kStart + seconds(10));
  EXPECT_TRUE(budget.Failed(kStart, false));
  EXPECT_EQ(budget.end(kStart + seconds(4)), kStart + seconds(10));
  EXPECT_TRUE(budget.Failed(kStart + seconds(9), true));
  budget.Met();
  EXPECT_EQ(budget.end(kStart + seconds(60)), kStart + seconds(70));
  EXPECT_TRUE(budget.Failed(kStart + seconds(100), false));
  EXPECT_EQ(budget.end(kStart + seconds(100)), kStart + seconds(110));
}

TEST(RetryBudgetTest, BehindTheWaitTheyCountAsTheOthers) {
  RetryBudget budget(3, seconds(10));
  EXPECT_TRUE(budget.Failed(kStart, true));
  EXPECT_TRUE(budget.Failed(kStart + seconds(10), true));
  EXPECT_TRUE(budget.Failed(kStart + seconds(11), true));
  EXPECT_FALSE(budget.Failed(kStart + seconds(12), true));
}

}  // namespace
}  // namespace cachalot
