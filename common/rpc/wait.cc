#include "common/rpc/wait.h"

#include <utility>

#include "common/base/check.h"
#include "common/rpc/loop.h"

namespace cachalot::rpc {

void Waiter::Park(std::coroutine_handle<> waiting, WaitList* list) {
  CHECK(loop_->InLoop() && !parked_);
  waiting_ = waiting;
  result_ = false;
  if (loop_->draining()) {  // the loop ends: nobody waits any more
    loop_->Resume(waiting);
    return;
  }
  parked_ = true;
  if (list != nullptr) list->Add(this);
  loop_->timers().Add(this);
}

void Waiter::Wake(bool result) {
  if (!parked_) return;
  CHECK(loop_->InLoop());
  parked_ = false;
  result_ = result;
  if (list_ != nullptr) list_->Remove(this);
  loop_->timers().Remove(this);
  loop_->Resume(waiting_);
}

WaitList::~WaitList() { CHECK_MSG(first_ == nullptr, "destroyed under a coroutine that waits for it"); }

void WaitList::Add(Waiter* waiter) {
  waiter->list_ = this;
  waiter->previous_ = last_;
  waiter->next_ = nullptr;
  (last_ != nullptr ? last_->next_ : first_) = waiter;
  last_ = waiter;
}

void WaitList::Remove(Waiter* waiter) {
  (waiter->previous_ != nullptr ? waiter->previous_->next_ : first_) = waiter->next_;
  (waiter->next_ != nullptr ? waiter->next_->previous_ : last_) = waiter->previous_;
  waiter->list_ = nullptr;
}

void WaitList::WakeAll(bool result) {
  while (first_ != nullptr) first_->Wake(result);
}

void TimerHeap::Add(Waiter* waiter) {
  heap_.push_back(waiter);
  Place(heap_.size() - 1, waiter);
  SiftUp(heap_.size() - 1);
}

void TimerHeap::Remove(Waiter* waiter) {
  const size_t index = waiter->heap_index_;
  CHECK(index < heap_.size() && heap_[index] == waiter);
  Waiter* moved = heap_.back();
  heap_.pop_back();
  if (moved == waiter) return;
  Place(index, moved);
  SiftUp(index);
  SiftDown(moved->heap_index_);
}

void TimerHeap::Place(size_t index, Waiter* waiter) {
  heap_[index] = waiter;
  waiter->heap_index_ = index;
}

void TimerHeap::SiftUp(size_t index) {
  Waiter* waiter = heap_[index];
  while (index > 0 && waiter->deadline_ < heap_[(index - 1) / 2]->deadline_) {
    Place(index, heap_[(index - 1) / 2]);
    index = (index - 1) / 2;
  }
  Place(index, waiter);
}

void TimerHeap::SiftDown(size_t index) {
  Waiter* waiter = heap_[index];
  for (;;) {
    size_t child = 2 * index + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && heap_[child + 1]->deadline_ < heap_[child]->deadline_) ++child;
    if (waiter->deadline_ <= heap_[child]->deadline_) break;
    Place(index, heap_[child]);
    index = child;
  }
  Place(index, waiter);
}

}  // namespace cachalot::rpc
