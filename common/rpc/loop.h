#pragma once
// One thread, one completion queue, one loop. Everything that a loop resumes runs on its thread, one at a
// time, so its coroutines share data without locks. Other threads reach it through Post and Spawn only.
//
// Two ways to drive it: Start (a thread of its own that blocks in the queue), or PollOnce from a thread that
// has other work, such as a step thread. Not both.
//
// End: Shutdown(grace) asks. Tasks see stop_requested(); at the end of the grace every client call of the
// loop is cancelled and every wait returns early; when the last task has ended the queue is closed and
// drained.

#include <atomic>
#include <condition_variable>
#include <coroutine>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/base/time.h"
#include "common/rpc/cancel_scope.h"
#include "common/rpc/cq_tag.h"
#include "common/rpc/task.h"
#include "common/rpc/wait.h"
#include "grpcpp/alarm.h"
#include "grpcpp/completion_queue.h"

namespace cachalot::rpc {

class Event;

struct LoopOptions {
  std::string name = "loop";  ///< the thread's name (15 characters count) and what messages call it
  int spin_us = 0;  ///< how long to poll without sleeping before each blocking wait; needs a core to itself
};

class Loop {
 public:
  /// A loop for client calls. A loop that also accepts calls comes from Server::AddLoop.
  explicit Loop(LoopOptions options = {});
  Loop(LoopOptions options, std::unique_ptr<grpc::CompletionQueue> queue);
  /// Stops without grace, if that has not been done, and waits for the tasks to end.
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  /// Runs the loop on a thread of its own, which ends when the loop has stopped. Once.
  void Start();
  /// Waits for that thread. False if it has not ended by `deadline`.
  [[nodiscard]] bool Join(TimePoint deadline);

  enum class Poll {
    kProgress,  ///< something ran
    kTimeout,   ///< the deadline passed with nothing to do
    kStopped,   ///< shut down and drained: do not poll again
  };
  /// Runs what is ready, or waits until `deadline` for the next thing to run and runs that. A deadline in the
  /// past never waits. Sleeping deadlines are rounded up to gRPC's millisecond; within spin_us they are
  /// exact.
  Poll PollOnce(TimePoint deadline);

  /// Any thread: runs `work` on the loop soon. False when the loop has stopped (work is dropped). Costs a
  /// wake-up only when the loop sleeps, and only one however many are posted.
  bool Post(std::function<void()> work);

  /// Any thread: runs `task` detached, from the loop's next turn on. `name` (static storage) is what a
  /// shutdown that waits in vain prints. False when the loop has stopped: the task is destroyed without
  /// having run.
  bool Spawn(Task<void> task, const char* name = "task");

  /// Any thread, does not wait: asks the tasks to end within `grace`, then cancels what they wait for.
  /// Idempotent; a shorter grace replaces a longer one. Tasks that outlive grace + 10 s abort the process
  /// with their names.
  void Shutdown(Duration grace);

  TimePoint Now() const { return std::chrono::steady_clock::now(); }
  const std::string& name() const { return options_.name; }
  /// True on the thread that drives the loop, and everywhere while nobody has driven it yet.
  bool InLoop() const;
  /// True on the thread that drove the loop last.
  bool IsDriver() const { return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }
  /// Loop thread: Shutdown was asked for. A task that waits in rounds must look at this in each.
  bool stopping() const { return stopping_; }
  /// Loop thread: set when Shutdown has been asked for.
  Event& stop_requested() { return *stop_requested_; }
  /// Loop thread: cancelled when the grace has ended; every client call of the loop is in it.
  CancelScope& scope() { return scope_; }
  /// Loop thread: how many spawned tasks have not ended.
  int live_tasks() const { return live_tasks_; }

  grpc::CompletionQueue* queue() { return queue_.get(); }
  /// The same queue for the acceptors of a Server; null for a loop that the server did not make.
  grpc::ServerCompletionQueue* server_queue() { return server_queue_; }

  // For awaiters. Loop thread only.
  void Resume(std::coroutine_handle<> ready) { ready_.push_back(ready); }
  TimerHeap& timers() { return timers_; }
  /// The grace is over: waits return at once.
  bool draining() const { return draining_; }

 private:
  friend class Server;
  struct LiveTask;
  struct Detached;
  class Wake final : public CqTag {
   public:
    explicit Wake(Loop* loop) : loop_(loop) {}
    void Complete(bool) override;

   private:
    Loop* loop_;
  };

  static Detached RunDetached(Loop* loop, Task<void> task, const char* name);
  bool RunReady();
  bool RunTimers();
  void AdvanceShutdown();
  void CheckHardStop(TimePoint now);
  bool TakeQueueEvent(TimePoint deadline);
  bool Spin(TimePoint deadline);
  bool Sleep(TimePoint deadline);
  TimePoint NextWake(TimePoint deadline) const;

  const LoopOptions options_;
  grpc::ServerCompletionQueue* server_queue_ = nullptr;
  std::unique_ptr<grpc::CompletionQueue> queue_;

  // Loop thread.
  std::vector<std::coroutine_handle<>> ready_, running_;
  std::vector<std::function<void()>> posted_running_;
  TimerHeap timers_;
  CancelScope scope_;
  std::unique_ptr<Event> stop_requested_;
  LiveTask* tasks_ = nullptr;
  int live_tasks_ = 0;
  bool stopping_ = false, draining_ = false, queue_closed_ = false;
  TimePoint grace_end_ = TimePoint::max();

  // Shared with the threads that post.
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;
  bool sleeping_ = false, wake_armed_ = false, closed_ = false;
  std::atomic<bool> has_posted_{false}, stopped_{false};
  std::atomic<std::thread::id> owner_{};
  Wake wake_{this};
  grpc::Alarm alarm_;

  std::thread thread_;
  std::condition_variable ended_;
  bool thread_ended_ = false;  // under mutex_
};

/// gRPC's form of a deadline; TimePoint::max() is "never".
gpr_timespec ToGprTime(TimePoint when);
TimePoint FromGprTime(gpr_timespec when);

}  // namespace cachalot::rpc
