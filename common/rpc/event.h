#pragma once
// Waiting on a loop: sleeps and events. Loop thread only; another thread sets an event through Loop::Post.

#include <coroutine>

#include "common/base/time.h"
#include "common/rpc/loop.h"
#include "common/rpc/wait.h"

namespace cachalot::rpc {

/// A flag that coroutines wait for. It stays set until Reset.
class Event {
 public:
  explicit Event(Loop* loop) : loop_(loop) {}

  void Set() {
    set_ = true;
    waiters_.WakeAll(true);
  }
  void Reset() { set_ = false; }
  bool is_set() const { return set_; }

  class [[nodiscard]] Wait {
   public:
    Wait(Event* event, TimePoint deadline) : event_(event), waiter_(event->loop_, deadline) {}
    bool await_ready() const { return event_->set_; }
    void await_suspend(std::coroutine_handle<> waiting) { waiter_.Park(waiting, &event_->waiters_); }
    bool await_resume() const { return waiter_.result() || event_->set_; }

   private:
    Event* event_;
    Waiter waiter_;
  };
  /// co_await: true when the event was set, false at the deadline or when the loop's grace has ended.
  /// TimePoint::max() waits for the event or the end of the loop.
  Wait WaitUntil(TimePoint deadline) { return Wait(this, deadline); }
  Wait WaitFor(Duration at_most) { return Wait(this, loop_->Now() + at_most); }

 private:
  Loop* loop_;
  WaitList waiters_;
  bool set_ = false;
};

/// Sleeps end early, with false, when their scope is cancelled or the loop's grace has ended.
class [[nodiscard]] SleepUntil final : private CancelHook {
 public:
  SleepUntil(Loop* loop, TimePoint deadline, CancelScope* scope = nullptr)
      : waiter_(loop, deadline), loop_(loop), scope_(scope) {}
  ~SleepUntil() = default;

  bool await_ready() const { return scope_ != nullptr && scope_->cancelled(); }
  void await_suspend(std::coroutine_handle<> waiting) {
    waiter_.Park(waiting, nullptr);
    if (scope_ != nullptr) Attach(scope_);
  }
  /// co_await: true when the time has come, false when cancelled.
  bool await_resume() const {
    return !(scope_ != nullptr && scope_->cancelled()) && loop_->Now() >= waiter_.deadline();
  }

 private:
  void OnCancel() override { waiter_.Wake(false); }
  Waiter waiter_;
  Loop* loop_;
  CancelScope* scope_;
};

inline SleepUntil SleepFor(Loop* loop, Duration duration, CancelScope* scope = nullptr) {
  return SleepUntil(loop, loop->Now() + duration, scope);
}

/// co_await Yield(loop): lets everything else that is ready run first.
class [[nodiscard]] Yield {
 public:
  explicit Yield(Loop* loop) : loop_(loop) {}
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> waiting) { loop_->Resume(waiting); }
  void await_resume() const {}

 private:
  Loop* loop_;
};

}  // namespace cachalot::rpc
