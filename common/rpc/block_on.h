#pragma once
// For threads outside the loops, at start-up and in tests: run a task on a loop and wait for its result.

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "common/base/check.h"
#include "common/base/seconds_text.h"
#include "common/base/status.h"
#include "common/base/time.h"
#include "common/rpc/loop.h"
#include "common/rpc/task.h"

namespace cachalot::rpc {

namespace internal {
template <typename T>
struct BlockOnState {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<T> result;
};

template <typename T>
struct WithStatus {
  using Type = StatusOr<T>;
};
template <>
struct WithStatus<Status> {
  using Type = Status;
};
template <typename T>
struct WithStatus<StatusOr<T>> {
  using Type = StatusOr<T>;
};
template <typename T>
using BlockOnResult = typename WithStatus<T>::Type;

template <typename T>
Task<void> RunFor(std::shared_ptr<BlockOnState<T>> state, Task<T> task) {
  std::optional<T> result;
  {
    // Gone, with all that it holds, before the waiting thread goes on.
    Task<T> running = std::move(task);
    T value = co_await std::move(running);
    result.emplace(std::move(value));
  }
  std::lock_guard lock(state->mutex);
  state->result = std::move(result);
  state->changed.notify_all();
}
}  // namespace internal

/// Not on the loop's own thread. The task's result; DEADLINE_EXCEEDED names `what` after `at_most` (the task
/// goes on); UNAVAILABLE when the loop has stopped. A Task<Status> gives a Status, a Task<StatusOr<T>> a
/// StatusOr<T>.
template <typename T>
internal::BlockOnResult<T> BlockOn(Loop* loop, Task<T> task, Duration at_most, const char* what) {
  auto state = std::make_shared<internal::BlockOnState<T>>();
  if (!loop->Spawn(internal::RunFor<T>(state, std::move(task)), what)) {
    return Unavailable(std::string(what) + ": the loop " + loop->name() + " has stopped");
  }
  std::unique_lock lock(state->mutex);
  if (!state->changed.wait_for(lock, at_most, [&] { return state->result.has_value(); })) {
    return DeadlineExceeded(std::string(what) + ": not done in " + SecondsText(at_most));
  }
  return std::move(*state->result);
}

}  // namespace cachalot::rpc
