#pragma once
// Lazy coroutines of one loop. A Task does nothing until it is awaited or handed to Loop::Spawn, and whoever
// awaits it continues at its end without growing the stack. A Task is destroyed only when it has ended or
// before it began: operations in flight point into its frame, so stopping one early means cancelling what it
// waits for.
//
// Rules for GCC 12:
//  * No lambda with captures may be a coroutine: the frame outlives the lambda.
//  * Parameters are values, or references to objects of the loop that outlive the task.
//  * A coroutine that awaits in the condition of if, while, for or switch must have a local variable
//    somewhere: one without any is laid out wrongly. `const bool ok = co_await Try(x); if (!ok) ...` always
//    works. The promise below aborts when such a coroutine is called.
//  * A lambda with captures among the arguments of an awaited call is destroyed twice: name the function and
//    the task first, then await the task.

#include <coroutine>
#include <cstddef>
#include <exception>
#include <new>
#include <optional>
#include <utility>

#include "common/base/check.h"

namespace cachalot::rpc {

template <typename T = void>
class [[nodiscard]] Task;

namespace internal {

struct TaskPromiseBase {
  std::coroutine_handle<> continuation = std::noop_coroutine();

  // The frame of the coroutine that is about to start on this thread. A miscompiled one does not begin where
  // it was allocated; running it would jump anywhere.
  static inline thread_local void* allocated = nullptr;
  static void* operator new(size_t bytes) { return allocated = ::operator new(bytes); }
  static void operator delete(void* frame, size_t bytes) { ::operator delete(frame, bytes); }
  static void CheckFrame(void* frame) {
    CHECK_MSG(frame == allocated, "GCC laid a coroutine out wrongly: see the rules in task.h");
  }

  struct ResumeContinuation {
    bool await_ready() const noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> ended) const noexcept {
      return ended.promise().continuation;
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() const noexcept { return {}; }
  ResumeContinuation final_suspend() const noexcept { return {}; }
  // Errors are Status values. An exception that reaches a coroutine's border is a bug.
  void unhandled_exception() const noexcept { std::terminate(); }
};

template <typename T>
struct TaskPromise : TaskPromiseBase {
  std::optional<T> value;
  Task<T> get_return_object() noexcept;
  template <typename U>
  void return_value(U&& result) {
    value.emplace(std::forward<U>(result));
  }
  T Take() { return std::move(*value); }
};

template <>
struct TaskPromise<void> : TaskPromiseBase {
  Task<void> get_return_object() noexcept;
  void return_void() const noexcept {}
  void Take() const noexcept {}
};

}  // namespace internal

template <typename T>
class [[nodiscard]] Task {
 public:
  using promise_type = internal::TaskPromise<T>;

  Task() = default;
  explicit Task(std::coroutine_handle<promise_type> frame) : frame_(frame) {}
  Task(Task&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (frame_) frame_.destroy();
      frame_ = std::exchange(other.frame_, nullptr);
    }
    return *this;
  }
  ~Task() {
    if (frame_) frame_.destroy();
  }

  explicit operator bool() const { return static_cast<bool>(frame_); }

  struct Awaiter {
    std::coroutine_handle<promise_type> frame;
    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) const noexcept {
      frame.promise().continuation = caller;
      return frame;
    }
    T await_resume() const { return frame.promise().Take(); }
  };
  /// Runs the task to its end; only once, hence only on an rvalue.
  Awaiter operator co_await() && {
    CHECK(frame_);
    return Awaiter{frame_};
  }

 private:
  std::coroutine_handle<promise_type> frame_;
};

namespace internal {

template <typename T>
Task<T> TaskPromise<T>::get_return_object() noexcept {
  const auto frame = std::coroutine_handle<TaskPromise<T>>::from_promise(*this);
  CheckFrame(frame.address());
  return Task<T>(frame);
}
inline Task<void> TaskPromise<void>::get_return_object() noexcept {
  const auto frame = std::coroutine_handle<TaskPromise<void>>::from_promise(*this);
  CheckFrame(frame.address());
  return Task<void>(frame);
}

}  // namespace internal
}  // namespace cachalot::rpc
