#pragma once
// Tasks that end before their owner does.

#include <utility>

#include "common/base/check.h"
#include "common/rpc/event.h"
#include "common/rpc/loop.h"
#include "common/rpc/task.h"

namespace cachalot::rpc {

/// Loop thread only. The tasks may use what outlives the group; the owner joins before it goes.
class TaskGroup {
 public:
  explicit TaskGroup(Loop* loop) : loop_(loop), idle_(loop) { idle_.Set(); }
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;
  ~TaskGroup() { CHECK(live_ == 0); }

  void Spawn(Task<void> task, const char* name = "task") {
    ++live_;
    idle_.Reset();
    CHECK(loop_->Spawn(Run(this, std::move(task)), name));
  }
  int live() const { return live_; }

  /// co_await: true when every task has ended, false at the deadline. It does not cancel them.
  Event::Wait Join(TimePoint deadline) { return idle_.WaitUntil(deadline); }
  /// Waits for every task whatever happens: for owners that are about to go. The tasks' own deadlines bound
  /// it.
  Task<void> JoinAll() {
    while (live_ > 0) {
      if (loop_->draining()) {
        co_await Yield(loop_);
      } else {
        co_await idle_.WaitUntil(TimePoint::max());
      }
    }
  }

 private:
  static Task<void> Run(TaskGroup* group, Task<void> task) {
    co_await std::move(task);
    if (--group->live_ == 0) group->idle_.Set();
  }

  Loop* loop_;
  Event idle_;
  int live_ = 0;
};

}  // namespace cachalot::rpc
