#pragma once
// A thread for work that would hold up a loop: heartbeats are late when one of its turns takes a second.

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "common/base/status.h"
#include "common/rpc/cancel_scope.h"
#include "common/rpc/loop.h"
#include "common/rpc/task.h"

namespace cachalot::rpc {

class WorkThread {
 public:
  /// `name`: the thread's (15 characters count) and what messages call it. At most `max_waiting` wait for it.
  WorkThread(Loop* loop, std::string name, size_t max_waiting);
  /// Waits for what runs; the rest does not begin. The loop may be gone already.
  ~WorkThread();
  WorkThread(const WorkThread&) = delete;
  WorkThread& operator=(const WorkThread&) = delete;

  /// Loop thread: runs `work` there, first come first served. OK when it has run; RESOURCE_EXHAUSTED when too many
  /// wait; CANCELLED when `scope` was cancelled or the loop's grace has ended before. In that case it may still run,
  /// so `work` owns what it uses.
  Task<Status> Run(std::function<void()> work, CancelScope* scope);

 private:
  struct Job;
  void Main();

  Loop* const loop_;
  const std::string name_;
  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> waiting_;
  bool stop_ = false;
  std::thread thread_;  // begins with the first work
};

}  // namespace cachalot::rpc
