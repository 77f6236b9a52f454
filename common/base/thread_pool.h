#pragma once
// Fork-join over index ranges. Which thread takes which range never changes a result: ranges only split rows.

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "common/base/function_ref.h"

namespace cachalot {

class ThreadPool {
 public:
  /// `threads` >= 1 counts the caller: 1 runs everything inline and starts no thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(begin, end) on disjoint ranges that cover [0, count), at least `grain` wide but for the last;
  /// returns when all are done. Not reentrant; one caller at a time.
  void ParallelFor(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body);

 private:
  void Work(int index);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  const FunctionRef<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t count_ = 0, chunk_ = 0;
  uint64_t round_ = 0;
  int running_ = 0;
  bool stop_ = false;
};

}  // namespace cachalot
