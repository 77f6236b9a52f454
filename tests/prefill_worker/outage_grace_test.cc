#include "prefill_worker/outage_grace.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

using std::chrono::milliseconds, std::chrono::seconds;

constexpr TimePoint kStart{seconds(1000)};

TEST(OutageGraceTest, AnOutageMayLastFiveSeconds) {
  OutageGrace grace;
  EXPECT_TRUE(grace.Failed(kStart, kStart + seconds(1)));
  EXPECT_TRUE(grace.Failed(kStart, kStart + milliseconds(4999)));
  EXPECT_FALSE(grace.Failed(kStart, kStart + seconds(5)));
}

TEST(OutageGraceTest, BehindOneThatEndedJobsTheNextHasASecond) {
  OutageGrace grace;
  EXPECT_TRUE(grace.Failed(kStart, kStart + seconds(1)));
  EXPECT_FALSE(grace.Failed(kStart, kStart + seconds(5)));
  const TimePoint next = kStart + seconds(8);
  EXPECT_TRUE(grace.Failed(next, next + milliseconds(999)));
  EXPECT_FALSE(grace.Failed(next, next + seconds(1)));
}

TEST(OutageGraceTest, OneMuchLaterIsAnother) {
  OutageGrace grace;
  EXPECT_FALSE(grace.Failed(kStart, kStart + seconds(5)));
  const TimePoint next = kStart + seconds(11);
  EXPECT_TRUE(grace.Failed(next, next + seconds(4)));
}

TEST(OutageGraceTest, AnAnswerOrACancelledJobEndsIt) {
  OutageGrace grace;
  EXPECT_TRUE(grace.Failed(kStart, kStart + milliseconds(300)));
  grace.Over();
  const TimePoint next = kStart + milliseconds(5200);
  EXPECT_TRUE(grace.Failed(next, next + seconds(4)));
}

}  // namespace
}  // namespace cachalot
