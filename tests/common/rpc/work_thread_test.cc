// Every wait for another thread is a future with kPatience; the loop is polled by the test itself.

#include "common/rpc/work_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <optional>

#include "tests/support/patience.h"

namespace cachalot::rpc {
namespace {

using cachalot::testing::kPatience;

Task<void> Keep(Task<Status> task, std::optional<Status>* out) {
  Status status = co_await std::move(task);
  *out = std::move(status);
}

class WorkThreadTest : public ::testing::Test {
 protected:
  std::optional<Status>& Start(std::function<void()> work, std::optional<Status>* out) {
    loop_.Spawn(Keep(thread_->Run(std::move(work), &scope_), out));
    Turn();
    return *out;
  }
  /// The thread is busy, with first_, until go_on_.
  void Occupy() {
    std::promise<void> begun;
    Start(
        [this, &begun] {
          begun.set_value();
          go_on_.get_future().wait_for(kPatience);
        },
        &first_);
    ASSERT_EQ(begun.get_future().wait_for(kPatience), std::future_status::ready);
  }
  void Turn() {
    while (loop_.PollOnce(TimePoint::min()) == Loop::Poll::kProgress) {
    }
  }
  void Await(const std::optional<Status>& out) {
    const TimePoint end = loop_.Now() + kPatience;
    while (!out && loop_.Now() < end) loop_.PollOnce(end);
    ASSERT_TRUE(out);
  }

  std::promise<void> go_on_;
  Loop loop_;
  CancelScope scope_;
  std::optional<WorkThread> thread_{std::in_place, &loop_, "work", 1};
  std::optional<Status> first_, second_, third_;
};

TEST_F(WorkThreadTest, TheLoopGoesOnWhileWorkRuns) {
  std::promise<void> go_on;
  const auto worker = std::make_shared<std::thread::id>();
  Start([going_on = go_on.get_future().share(), worker] {
    EXPECT_EQ(going_on.wait_for(kPatience), std::future_status::ready) << "the loop waits for this";
    *worker = std::this_thread::get_id();
  }, &first_);
  loop_.Post([&go_on] { go_on.set_value(); });
  Turn();
  Await(first_);
  EXPECT_TRUE(first_->ok()) << *first_;
  EXPECT_NE(*worker, std::this_thread::get_id());
}

TEST_F(WorkThreadTest, TooMuchIsRefused) {
  Occupy();
  Start([] {}, &second_);
  EXPECT_FALSE(second_);
  Start([] { ADD_FAILURE() << "refused work runs"; }, &third_);
  ASSERT_TRUE(third_);
  EXPECT_EQ(third_->code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(StatusMessage(*third_), "work: 1 wait already, which is all that it takes; retry later");
  go_on_.set_value();
  Await(first_);
  Await(second_);
  EXPECT_TRUE(first_->ok() && second_->ok()) << *first_ << *second_;
}

TEST_F(WorkThreadTest, WhoIsCancelledDoesNotWait) {
  Occupy();
  Start([] { ADD_FAILURE() << "nobody waits for this"; }, &second_);
  scope_.Cancel();
  Turn();
  ASSERT_TRUE(first_ && second_);
  EXPECT_EQ(first_->code(), StatusCode::kCancelled);
  EXPECT_EQ(second_->code(), StatusCode::kCancelled);
  go_on_.set_value();
  thread_.reset();
}

TEST_F(WorkThreadTest, WhoIsCancelledLeavesItsPlace) {
  Occupy();
  CancelScope scope;
  loop_.Spawn(Keep(thread_->Run([] { ADD_FAILURE() << "nobody waits for this"; }, &scope), &second_));
  Turn();
  scope.Cancel();
  Turn();
  ASSERT_TRUE(second_);
  bool ran = false;
  Start([&ran] { ran = true; }, &third_);
  EXPECT_FALSE(third_) << *third_;
  go_on_.set_value();
  Await(third_);
  EXPECT_TRUE(third_->ok() && ran) << *third_;
}

TEST_F(WorkThreadTest, WorkMayOutliveTheLoop) {
  std::promise<void> begun, go_on;
  auto loop = std::make_unique<Loop>();
  WorkThread thread(loop.get(), "work", 1);
  loop->Spawn(Keep(thread.Run([&begun, &go_on] {
    begun.set_value();
    go_on.get_future().wait_for(kPatience);
  }, &scope_), &first_));
  while (loop->PollOnce(TimePoint::min()) == Loop::Poll::kProgress) {
  }
  ASSERT_EQ(begun.get_future().wait_for(kPatience), std::future_status::ready);
  loop.reset();
  ASSERT_TRUE(first_);
  EXPECT_EQ(first_->code(), StatusCode::kCancelled);
  go_on.set_value();
}

}  // namespace
}  // namespace cachalot::rpc
