#include "common/rpc/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "common/rpc/block_on.h"
#include "common/rpc/event.h"
#include "common/rpc/loop.h"
#include "common/rpc/task_group.h"

namespace cachalot::rpc {
namespace {

using std::chrono::seconds;

Task<int> Number(int value) { co_return value; }

Task<int> Sum(int count) {
  int sum = 0;
  for (int i = 0; i < count; ++i) sum += co_await Number(i);
  co_return sum;
}

Task<StatusOr<std::unique_ptr<int>>> MoveOnly(bool fail) {
  if (fail) co_return NotFound("nothing");
  co_return std::make_unique<int>(7);
}

Task<StatusOr<int>> Unwrap(bool fail) {
  CO_ASSIGN_OR_RETURN(std::unique_ptr<int> value, co_await MoveOnly(fail));
  co_return *value;
}

Task<bool> Less(int a, int b) { co_return a < b; }

// Conditions that await, in the forms that GCC 12 lays out rightly (task.h).
template <typename T>
Task<T> CountTo(T end) {
  T i = 0;
  while (co_await Less(i, 100) && !co_await Less(end - 1, i)) ++i;
  const bool done = co_await Less(end, i + 1);
  if (!done) co_return -1;
  co_return i;
}

// The form that it does not: no local variable.
Task<void> MisplacedFrame() {
  if (co_await Less(1, 2)) co_return;
}

class TaskTest : public testing::Test {
 protected:
  TaskTest() { loop_.Start(); }
  Loop loop_;
};

TEST_F(TaskTest, AwaitsWithoutGrowingTheStack) {
  EXPECT_EQ(BlockOn(&loop_, Sum(1000), seconds(5), "sum").value(), 499500);
}

TEST_F(TaskTest, CarriesMoveOnlyResultsAndErrors) {
  EXPECT_EQ(BlockOn(&loop_, Unwrap(false), seconds(5), "unwrap").value(), 7);
  EXPECT_EQ(BlockOn(&loop_, Unwrap(true), seconds(5), "unwrap").status().code(), StatusCode::kNotFound);
}

Task<void> Touch(std::shared_ptr<int> alive) {
  ++*alive;
  co_return;
}

TEST_F(TaskTest, AwaitsInConditions) {
  EXPECT_EQ(BlockOn(&loop_, CountTo(5), seconds(5), "count").value(), 5);
}

TEST(TaskDeathTest, AMisplacedFrameIsCaught) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
#if defined(__GNUC__) && __GNUC__ == 12
  EXPECT_DEATH(std::ignore = MisplacedFrame(), "laid a coroutine out wrongly");
#endif
}

TEST_F(TaskTest, AnUnstartedTaskFreesItsParameters) {
  auto alive = std::make_shared<int>(0);
  { Task<void> never = Touch(alive); }
  EXPECT_EQ(alive.use_count(), 1);
  EXPECT_EQ(*alive, 0);
}

Task<void> Append(std::vector<int>* out, int value, Event* go) {
  co_await go->WaitUntil(TimePoint::max());
  out->push_back(value);
}

Task<int> JoinThree(Loop* loop, std::vector<int>* out) {
  Event go(loop);
  TaskGroup group(loop);
  for (int i = 0; i < 3; ++i) group.Spawn(Append(out, i, &go));
  const bool early = co_await group.Join(loop->Now());
  go.Set();
  co_await group.Join(TimePoint::max());
  co_return early ? -1 : group.live();
}

TEST_F(TaskTest, AGroupJoinsItsTasksInOrder) {
  std::vector<int> out;
  EXPECT_EQ(BlockOn(&loop_, JoinThree(&loop_, &out), seconds(5), "join").value(), 0);
  EXPECT_THAT(out, testing::ElementsAre(0, 1, 2));
}

TEST(TaskStopped, SpawnOnAStoppedLoopDestroysTheTask) {
  Loop loop;
  loop.Start();
  loop.Shutdown(Duration::zero());
  ASSERT_TRUE(loop.Join(loop.Now() + seconds(5)));
  auto alive = std::make_shared<int>(0);
  EXPECT_FALSE(loop.Spawn(Touch(alive)));
  EXPECT_EQ(alive.use_count(), 1);
  EXPECT_EQ(BlockOn(&loop, Number(1), seconds(5), "number").status().code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace cachalot::rpc
