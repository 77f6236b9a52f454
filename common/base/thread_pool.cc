#include "common/base/thread_pool.h"

#include <algorithm>

#include "common/base/check.h"

namespace cachalot {

ThreadPool::ThreadPool(int threads) {
  CHECK(threads >= 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) {
  const int64_t pieces = std::min<int64_t>(threads(), (count + grain - 1) / std::max<int64_t>(grain, 1));
  if (pieces <= 1) {
    if (count > 0) body(0, count);
    return;
  }
  const int64_t chunk = (count + threads() - 1) / threads();
  {
    std::lock_guard lock(mutex_);
    body_ = &body;
    count_ = count;
    chunk_ = chunk;
    running_ = static_cast<int>(workers_.size());
    ++round_;
  }
  start_.notify_all();
  body(0, std::min(chunk, count));
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return running_ == 0; });
  body_ = nullptr;
}

void ThreadPool::Work(int index) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    start_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    const auto* body = body_;
    const int64_t begin = std::min<int64_t>(chunk_ * index, count_), end = std::min<int64_t>(begin + chunk_, count_);
    lock.unlock();
    if (begin < end) (*body)(begin, end);
    lock.lock();
    if (--running_ == 0) done_.notify_all();
  }
}

}  // namespace cachalot
