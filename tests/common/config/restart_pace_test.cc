#include "common/process/restart_pace.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

using std::chrono::milliseconds, std::chrono::seconds;

TEST(RestartPaceTest, WhatEndsAtOnceWaitsLongerEachTime) {
  RestartPace pace;
  for (const int pause : {200, 400, 800, 1600, 3200, 6400, 10000, 10000})
    EXPECT_EQ(pace.Ended(seconds(1)), milliseconds(pause));
}

TEST(RestartPaceTest, ALongRunIsForgiven) {
  RestartPace pace;
  for (int i = 0; i < 5; ++i) pace.Ended(seconds(0));
  EXPECT_EQ(pace.Ended(seconds(10)), milliseconds(200));
  EXPECT_EQ(pace.Ended(seconds(9)), milliseconds(400));
}

}  // namespace
}  // namespace cachalot
