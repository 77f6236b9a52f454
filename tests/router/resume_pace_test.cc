#include "router/resume_pace.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

using std::chrono::milliseconds, std::chrono::seconds;

constexpr TimePoint kStart{seconds(1000)};

TEST(ResumePaceTest, RefusalsMakeItAskLaterAndLater) {
  ResumePace pace(seconds(1), seconds(100));
  TimePoint now = kStart;
  for (const int pause : {20, 40, 80, 160, 320, 640, 1000, 1000}) {
    const milliseconds wait(pause);
    pace.Refused(now);
    EXPECT_FALSE(pace.MayAsk(now + wait - milliseconds(1)));
    now += wait;
    EXPECT_TRUE(pace.MayAsk(now));
  }
}

TEST(ResumePaceTest, OnePreemptedAsksAtOnceAndFromTheBeginning) {
  ResumePace pace(seconds(1), seconds(100));
  for (int i = 0; i < 8; ++i) pace.Refused(kStart);
  pace.Preempted(kStart);
  EXPECT_TRUE(pace.MayAsk(kStart));
  pace.Refused(kStart);
  EXPECT_TRUE(pace.MayAsk(kStart + milliseconds(20)));
}

TEST(ResumePaceTest, PrefillWorkersMayRefuseItForSoLong) {
  ResumePace pace(seconds(1), seconds(2));
  EXPECT_TRUE(pace.RefusedByPrefill(kStart, 3));
  pace.Refused(kStart + seconds(1));
  EXPECT_TRUE(pace.RefusedByPrefill(kStart + milliseconds(1999), 3));
  EXPECT_FALSE(pace.RefusedByPrefill(kStart + seconds(2), 3));
}

TEST(ResumePaceTest, ATokenOrAPreemptionBetweenPrefillWorkersRefusalsBeginsAnew) {
  ResumePace pace(seconds(1), seconds(2));
  EXPECT_TRUE(pace.RefusedByPrefill(kStart, 3));
  EXPECT_TRUE(pace.RefusedByPrefill(kStart + seconds(3), 4));
  pace.Preempted(kStart + seconds(4));
  EXPECT_TRUE(pace.RefusedByPrefill(kStart + seconds(6), 4));
  EXPECT_FALSE(pace.RefusedByPrefill(kStart + seconds(9), 4));
}

TEST(ResumePaceTest, PrefillWorkersRefusalsMakeItAskLaterToo) {
  ResumePace pace(seconds(1), seconds(100));
  EXPECT_TRUE(pace.RefusedByPrefill(kStart, 0));
  EXPECT_FALSE(pace.MayAsk(kStart + milliseconds(19)));
}

TEST(ResumePaceTest, ItBelievesReportsLongerAndLongerUntilItIsPreemptedAgain) {
  ResumePace pace(seconds(1), seconds(2));
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
