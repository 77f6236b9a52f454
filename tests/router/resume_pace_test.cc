#include "router/resume_pace.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

using std::chrono::milliseconds, std::chrono::seconds;

constexpr TimePoint kStart{seconds(1000)};

TEST(ResumePaceTest, RefusalsMakeItAskLaterAndLater) {
  ResumePace pace(seconds(1), 100);
  TimePoint now = kStart;
  for (const int pause : {20, 40, 80, 160, 320, 640, 1000, 1000}) {
    const milliseconds wait(pause);
    ASSERT_TRUE(pace.Refused(now, false));
    EXPECT_FALSE(pace.MayAsk(now + wait - milliseconds(1)));
    now += wait;
    EXPECT_TRUE(pace.MayAsk(now));
  }
}

TEST(ResumePaceTest, OnePreemptedAsksAtOnceAndFromTheBeginning) {
  ResumePace pace(seconds(1), 100);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(pace.Refused(kStart, false));
  pace.Preempted(kStart);
  EXPECT_TRUE(pace.MayAsk(kStart));
  ASSERT_TRUE(pace.Refused(kStart, false));
  EXPECT_TRUE(pace.MayAsk(kStart + milliseconds(20)));
}

TEST(ResumePaceTest, PrefillWorkersMayRefuseItSoOftenInARow) {
  ResumePace pace(seconds(1), 2);
  EXPECT_TRUE(pace.Refused(kStart, true));
  EXPECT_TRUE(pace.Refused(kStart, false)) << "a decode worker's: not counted";
  EXPECT_TRUE(pace.Refused(kStart, true));
  pace.Preempted(kStart);
  EXPECT_TRUE(pace.Refused(kStart, true));
  EXPECT_TRUE(pace.Refused(kStart, true));
  EXPECT_FALSE(pace.Refused(kStart, true));
}

TEST(ResumePaceTest, ItBelievesReportsLongerAndLongerUntilItIsPreemptedAgain) {
  ResumePace pace(seconds(1), 2);
  TimePoint now = kStart;
  pace.JoinsLine(now);
  for (const int wait : {1, 2, 4, 8, 16, 32, 32}) {
    EXPECT_FALSE(pace.AsksAnyway(now + seconds(wait) - milliseconds(1)));
    now += seconds(wait);
    EXPECT_TRUE(pace.AsksAnyway(now));
    EXPECT_FALSE(pace.AsksAnyway(now)) << "once";
  }
  pace.Preempted(now);
  pace.JoinsLine(now);
  EXPECT_TRUE(pace.AsksAnyway(now + seconds(1)));
}

}  // namespace
}  // namespace cachalot
