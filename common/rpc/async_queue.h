#pragma once
// A queue between coroutines of one loop. Another thread pushes through Loop::Post.

#include <coroutine>
#include <deque>
#include <optional>
#include <utility>

#include "common/base/time.h"
#include "common/rpc/loop.h"
#include "common/rpc/wait.h"

namespace cachalot::rpc {

template <typename T>
class AsyncQueue {
 public:
  explicit AsyncQueue(Loop* loop) : loop_(loop) {}

  /// Gives the item to the longest waiting Pop, or keeps it. False when closed: the item is dropped.
  bool Push(T item) {
    if (closed_) return false;
    if (auto* pop = static_cast<Pop*>(waiters_.first())) {
      pop->item_.emplace(std::move(item));
      pop->Wake(true);
    } else {
      items_.push_back(std::move(item));
    }
    return true;
  }
  /// No more pushes; what is queued can still be popped, then Pop gives nothing at once.
  void Close() {
    closed_ = true;
    waiters_.WakeAll(false);
  }
  bool closed() const { return closed_; }
  size_t size() const { return items_.size(); }

  std::optional<T> TryPop() {
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }

  class [[nodiscard]] Pop final : public Waiter {
   public:
    Pop(AsyncQueue* queue, TimePoint deadline) : Waiter(queue->loop_, deadline), queue_(queue) {}
    bool await_ready() {
      item_ = queue_->TryPop();
      return item_.has_value() || queue_->closed_;
    }
    void await_suspend(std::coroutine_handle<> waiting) { Park(waiting, &queue_->waiters_); }
    std::optional<T> await_resume() { return std::move(item_); }

   private:
    friend class AsyncQueue;
    AsyncQueue* queue_;
    std::optional<T> item_;
  };
  /// co_await: an item; nothing at the deadline, when closed and empty, or when the loop's grace has ended.
  Pop PopUntil(TimePoint deadline) { return Pop(this, deadline); }

 private:
  Loop* loop_;
  std::deque<T> items_;
  WaitList waiters_;
  bool closed_ = false;
};

}  // namespace cachalot::rpc
