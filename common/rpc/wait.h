#pragma once
// Parked coroutines and the heap of their deadlines. Everything here belongs to one loop's thread.

#include <coroutine>
#include <cstddef>
#include <vector>

#include "common/base/time.h"

namespace cachalot::rpc {

class Loop;
class WaitList;

/// A coroutine that waits on a loop for an event or its deadline, whichever is first. Lives in the waiting
/// frame.
class Waiter {
 public:
  Waiter(Loop* loop, TimePoint deadline) : loop_(loop), deadline_(deadline) {}
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  /// Parks `waiting` on `list` (may be null: only the deadline or CancelWait wakes it).
  void Park(std::coroutine_handle<> waiting, WaitList* list);
  /// Unparks; the coroutine continues at the loop's next turn, never inside the caller. Does nothing when not
  /// parked.
  void Wake(bool result);

  bool parked() const { return parked_; }
  bool result() const { return result_; }
  TimePoint deadline() const { return deadline_; }

 private:
  friend class WaitList;
  friend class TimerHeap;
  Loop* loop_;
  TimePoint deadline_;
  std::coroutine_handle<> waiting_;
  WaitList* list_ = nullptr;
  Waiter* previous_ = nullptr;
  Waiter* next_ = nullptr;
  size_t heap_index_ = 0;
  bool parked_ = false;
  bool result_ = false;
};

/// First come, first served.
class WaitList {
 public:
  WaitList() = default;
  WaitList(const WaitList&) = delete;
  WaitList& operator=(const WaitList&) = delete;
  /// Nobody may be waiting any more.
  ~WaitList();

  Waiter* first() const { return first_; }
  void Add(Waiter* waiter);
  void Remove(Waiter* waiter);
  void WakeAll(bool result);

 private:
  Waiter* first_ = nullptr;
  Waiter* last_ = nullptr;
};

/// A binary heap that knows where each waiter is: removal costs O(log n), nothing is allocated per wait.
class TimerHeap {
 public:
  bool empty() const { return heap_.empty(); }
  Waiter* earliest() const { return heap_.front(); }
  void Add(Waiter* waiter);
  void Remove(Waiter* waiter);

 private:
  void Place(size_t index, Waiter* waiter);
  void SiftUp(size_t index);
  void SiftDown(size_t index);

  std::vector<Waiter*> heap_;
};

}  // namespace cachalot::rpc
