// Events, queues, scopes and write queues: all on one loop that the test itself polls.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "common/rpc/async_queue.h"
#include "common/rpc/event.h"
#include "common/rpc/write_queue.h"

namespace cachalot::rpc {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using testing::ElementsAre;

class SyncTest : public testing::Test {
 protected:
  void RunReady() {
    while (loop_.PollOnce(TimePoint::min()) == Loop::Poll::kProgress) {
    }
  }
  TimePoint Later() const { return loop_.Now() + hours(1); }

  Loop loop_;
};

Task<void> WaitEvent(Event* event, TimePoint deadline, std::vector<std::string>* out) {
  const bool set = co_await event->WaitUntil(deadline);
  out->push_back(set ? "set" : "late");
}

TEST_F(SyncTest, AnEventWakesAllItsWaitersLater) {
  Event event(&loop_);
  std::vector<std::string> out;
  for (int i = 0; i < 2; ++i) loop_.Spawn(WaitEvent(&event, Later(), &out));
  RunReady();
  EXPECT_THAT(out, ElementsAre());
  event.Set();
  EXPECT_THAT(out, ElementsAre());  // never inside Set
  RunReady();
  EXPECT_THAT(out, ElementsAre("set", "set"));
  loop_.Spawn(WaitEvent(&event, TimePoint::min(), &out));  // still set
  RunReady();
  event.Reset();
  loop_.Spawn(WaitEvent(&event, loop_.Now(), &out));
  while (out.size() < 4) loop_.PollOnce(Later());
  EXPECT_THAT(out, ElementsAre("set", "set", "set", "late"));
}

TEST_F(SyncTest, ASetAndResetStillWakes) {
  Event event(&loop_);
  std::vector<std::string> out;
  loop_.Spawn(WaitEvent(&event, Later(), &out));
  RunReady();
  event.Set();
  event.Reset();
  RunReady();
  EXPECT_THAT(out, ElementsAre("set"));
}

Task<void> PopAll(AsyncQueue<std::string>* queue, TimePoint deadline, std::vector<std::string>* out) {
  for (;;) {
    std::optional<std::string> item = co_await queue->PopUntil(deadline);
    out->push_back(item.value_or(queue->closed() ? "closed" : "late"));
    if (!item) co_return;
  }
}

TEST_F(SyncTest, AQueueGivesItemsInOrderAndThenCloses) {
  AsyncQueue<std::string> queue(&loop_);
  std::vector<std::string> out;
  EXPECT_TRUE(queue.Push("a"));
  loop_.Spawn(PopAll(&queue, Later(), &out));
  RunReady();
  EXPECT_TRUE(queue.Push("b"));
  EXPECT_TRUE(queue.Push("c"));
  queue.Close();
  EXPECT_FALSE(queue.Push("d"));
  RunReady();
  EXPECT_THAT(out, ElementsAre("a", "b", "c", "closed"));
}

TEST_F(SyncTest, APopEndsAtItsDeadline) {
  AsyncQueue<std::string> queue(&loop_);
  std::vector<std::string> out;
  loop_.Spawn(PopAll(&queue, loop_.Now() + milliseconds(1), &out));
  while (out.empty()) loop_.PollOnce(Later());
  EXPECT_THAT(out, ElementsAre("late"));
  EXPECT_TRUE(queue.Push("kept"));
  EXPECT_EQ(queue.TryPop(), "kept");
}

TEST_F(SyncTest, TwoPopsShareTheItemsFirstComeFirstServed) {
  AsyncQueue<std::string> queue(&loop_);
  std::vector<std::string> first, second;
  loop_.Spawn(PopAll(&queue, Later(), &first));
  loop_.Spawn(PopAll(&queue, Later(), &second));
  RunReady();
  queue.Push("a");
  queue.Push("b");
  RunReady();
  queue.Close();
  RunReady();
  EXPECT_THAT(first, ElementsAre("a", "closed"));
  EXPECT_THAT(second, ElementsAre("b", "closed"));
}

TEST_F(SyncTest, AScopeRunsItsHooksOnce) {
  std::vector<int> out;
  CancelScope scope;
  CancelCallback first(&scope, [&] { out.push_back(1); });
  {
    CancelCallback gone(&scope, [&] { out.push_back(2); });
  }
  scope.Cancel();
  scope.Cancel();
  CancelCallback late(&scope, [&] { out.push_back(3); });
  EXPECT_THAT(out, ElementsAre(1, 3));
}

// A stream whose writes end when the test says so.
struct FakeStream {
  using WriteMessage = std::string;
  Event* gate;
  bool fail = false;
  std::vector<std::string> written;
  Task<bool> Write(const std::string& message) {
    co_await gate->WaitUntil(TimePoint::max());
    if (fail) co_return false;
    written.push_back(message);
    co_return true;
  }
};

TEST_F(SyncTest, AWriteQueueIsBoundedAndWritesInOrder) {
  Event gate(&loop_);
  FakeStream stream{&gate};
  WriteQueue<FakeStream> queue(&loop_, &stream, 2);
  using Pushed = WriteQueue<FakeStream>::Pushed;
  EXPECT_EQ(queue.Push("a"), Pushed::kOk);
  RunReady();  // in flight now
  EXPECT_EQ(queue.Push("b"), Pushed::kOk);
  EXPECT_EQ(queue.Push("c"), Pushed::kOk);
  EXPECT_EQ(queue.Push("d"), Pushed::kFull);
  gate.Set();
  RunReady();
  EXPECT_THAT(stream.written, ElementsAre("a", "b", "c"));
}

Task<void> PushLater(WriteQueue<FakeStream>* queue, std::string message, TimePoint deadline,
                     std::vector<WriteQueue<FakeStream>::Pushed>* out) {
  out->push_back(co_await queue->PushUntil(std::move(message), deadline));
}

TEST_F(SyncTest, AWriteQueueWaitsForRoomAndClosesOnFailure) {
  Event gate(&loop_);
  FakeStream stream{&gate};
  WriteQueue<FakeStream> queue(&loop_, &stream, 1);
  using Pushed = WriteQueue<FakeStream>::Pushed;
  std::vector<Pushed> out;
  ASSERT_EQ(queue.Push("a"), Pushed::kOk);
  RunReady();
  ASSERT_EQ(queue.Push("b"), Pushed::kOk);
  loop_.Spawn(PushLater(&queue, "late", loop_.Now(), &out));
  while (out.empty()) loop_.PollOnce(Later());
  loop_.Spawn(PushLater(&queue, "c", Later(), &out));
  RunReady();
  EXPECT_THAT(out, ElementsAre(Pushed::kFull));
  gate.Set();
  RunReady();
  EXPECT_THAT(stream.written, ElementsAre("a", "b", "c"));
  stream.fail = true;
  EXPECT_EQ(queue.Push("d"), Pushed::kOk);
  RunReady();
  EXPECT_TRUE(queue.closed());
  EXPECT_EQ(queue.Push("e"), Pushed::kClosed);
}

}  // namespace
}  // namespace cachalot::rpc
