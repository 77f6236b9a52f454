#include "common/rpc/loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "common/rpc/block_on.h"
#include "common/rpc/event.h"

namespace cachalot::rpc {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

/// Says so once it is gone, which takes a while unless it is told not to wait.
struct Lingering {
  std::future<void> told;
  std::atomic<bool>& gone;
  ~Lingering() {
    told.wait_for(milliseconds(100));
    gone = true;
  }
};

Task<Status> Hold(std::unique_ptr<Lingering>) { co_return OkStatus(); }

TEST(Loop, BlockOnReturnsWhenTheTaskHasLetGoOfWhatItHolds) {
  std::atomic<bool> gone = false;
  std::promise<void> tell;
  Loop loop;
  loop.Start();
  std::unique_ptr<Lingering> held(new Lingering{tell.get_future(), gone});
  EXPECT_TRUE(BlockOn(&loop, Hold(std::move(held)), seconds(20), "the task").ok());
  EXPECT_TRUE(gone);
  tell.set_value();
}

TEST(Loop, RunsPostsOfManyThreadsOnItsThread) {
  Loop loop;
  loop.Start();
  constexpr int kThreads = 4, kPosts = 2000;
  int sum = 0;  // no lock: only the loop touches it
  std::promise<void> all;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kPosts; ++i) {
        ASSERT_TRUE(loop.Post([&] {
          EXPECT_TRUE(loop.InLoop());
          if (++sum == kThreads * kPosts) all.set_value();
        }));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(all.get_future().wait_for(seconds(20)), std::future_status::ready);
  EXPECT_FALSE(loop.InLoop());
}

TEST(Loop, APostWakesASleepingLoopEachTime) {
  Loop loop;
  loop.Start();
  for (int i = 0; i < 200; ++i) {
    std::promise<void> ran;
    ASSERT_TRUE(loop.Post([&] { ran.set_value(); }));
    ASSERT_EQ(ran.get_future().wait_for(seconds(20)), std::future_status::ready) << i;
  }
}

TEST(Loop, KeepsTheOrderOfPosts) {
  Loop loop;
  std::vector<int> order;
  for (int i = 0; i < 5; ++i) loop.Post([&order, i] { order.push_back(i); });
  EXPECT_EQ(loop.PollOnce(TimePoint::min()), Loop::Poll::kProgress);
  EXPECT_THAT(order, testing::ElementsAre(0, 1, 2, 3, 4));
}

TEST(Loop, PollOnceReportsTimeoutProgressAndStop) {
  Loop loop;
  EXPECT_EQ(loop.PollOnce(TimePoint::min()), Loop::Poll::kTimeout);
  EXPECT_EQ(loop.PollOnce(loop.Now() + milliseconds(2)), Loop::Poll::kTimeout);
  loop.Post([] {});
  EXPECT_EQ(loop.PollOnce(TimePoint::min()), Loop::Poll::kProgress);
  loop.Shutdown(Duration::zero());
  while (loop.PollOnce(loop.Now() + seconds(1)) != Loop::Poll::kStopped) {
  }
  EXPECT_EQ(loop.PollOnce(TimePoint::max()), Loop::Poll::kStopped);
  EXPECT_FALSE(loop.Post([] {}));
}

TEST(Loop, APostEndsABlockedPollOnce) {
  Loop loop({.name = "polled", .spin_us = 50});
  loop.PollOnce(TimePoint::min());
  std::thread other([&] { loop.Post([] {}); });
  EXPECT_EQ(loop.PollOnce(loop.Now() + hours(1)), Loop::Poll::kProgress);
  other.join();
}

Task<void> SleepTo(Loop* loop, TimePoint when, int mark, std::vector<int>* out) {
  co_await SleepUntil(loop, when);
  out->push_back(mark);
}

TEST(Loop, SleepsEndInTheOrderOfTheirDeadlines) {
  Loop loop;
  std::vector<int> out;
  const TimePoint start = loop.Now();
  for (int mark : {5, 1, 4, 2, 3, 9, 7, 8, 6}) {
    loop.Spawn(SleepTo(&loop, start + milliseconds(mark), mark, &out));
  }
  while (out.size() < 9) ASSERT_NE(loop.PollOnce(start + seconds(20)), Loop::Poll::kTimeout);
  EXPECT_THAT(out, testing::ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_GE(loop.Now(), start + milliseconds(9));
}

Task<bool> SleepLong(Loop* loop, CancelScope* scope) { co_return co_await SleepFor(loop, hours(1), scope); }

TEST(Loop, AScopeCancelsASleep) {
  Loop loop;
  loop.Start();
  CancelScope scope;
  std::thread other([&] { loop.Post([&] { scope.Cancel(); }); });
  EXPECT_FALSE(BlockOn(&loop, SleepLong(&loop, &scope), seconds(20), "sleep").value());
  other.join();
  EXPECT_FALSE(BlockOn(&loop, SleepLong(&loop, &scope), seconds(20), "a cancelled scope").value());
}

Task<void> NoteStop(Loop* loop, std::atomic<int>* stage) {
  co_await loop->stop_requested().WaitUntil(TimePoint::max());
  stage->store(1);
  co_await SleepFor(loop, hours(1));
  stage->store(2);
}

TEST(Loop, ShutdownAsksThenCutsWaitsShort) {
  std::atomic<int> stage{0};
  Loop loop;
  loop.Start();
  loop.Spawn(NoteStop(&loop, &stage));
  loop.Shutdown(hours(1));
  while (stage.load() == 0) std::this_thread::yield();
  EXPECT_EQ(stage.load(), 1);
  loop.Shutdown(Duration::zero());  // a shorter grace replaces the longer
  ASSERT_TRUE(loop.Join(loop.Now() + seconds(20)));
  EXPECT_EQ(stage.load(), 2);
}

TEST(Loop, TheDestructorEndsALoopThatNobodyDrives) {
  std::atomic<int> stage{0};
  {
    Loop loop;
    loop.Spawn(NoteStop(&loop, &stage));
    loop.PollOnce(TimePoint::min());
  }
  EXPECT_EQ(stage.load(), 2);
}

TEST(Loop, BlockOnNamesWhatItWaitedFor) {
  Loop loop;
  loop.Start();
  CancelScope scope;
  const auto late = BlockOn(&loop, SleepLong(&loop, nullptr), milliseconds(1), "the long sleep");
  EXPECT_EQ(late.status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(StatusMessage(late.status()), testing::HasSubstr("the long sleep"));
}

TEST(Loop, ConvertsDeadlines) {
  const TimePoint now = std::chrono::steady_clock::now();
  EXPECT_EQ(FromGprTime(ToGprTime(now)), now);
  EXPECT_EQ(FromGprTime(ToGprTime(TimePoint::max())), TimePoint::max());
  EXPECT_EQ(FromGprTime(gpr_inf_future(GPR_CLOCK_REALTIME)), TimePoint::max());
  EXPECT_LE(FromGprTime(ToGprTime(TimePoint::min())), now);
}

}  // namespace
}  // namespace cachalot::rpc
