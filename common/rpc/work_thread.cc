#include "common/rpc/work_thread.h"

#include <pthread.h>

#include <utility>

#include "common/rpc/event.h"

namespace cachalot::rpc {

struct WorkThread::Job {
  std::function<void()> work;

  // Loop thread.
  Event* done = nullptr;
  bool ran = false;

  // While somebody waits the loop is there.
  std::mutex mutex;
  bool awaited = true;
};

WorkThread::WorkThread(Loop* loop, std::string name, size_t max_waiting)
    : loop_(loop), name_(std::move(name)), max_waiting_(max_waiting) {}

WorkThread::~WorkThread() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Task<Status> WorkThread::Run(std::function<void()> work, CancelScope* scope) {
  Event done(loop_);
  const auto job = std::make_shared<Job>();
  job->work = std::move(work);
  job->done = &done;
  {
    std::lock_guard lock(mutex_);
    if (waiting_.size() >= max_waiting_)
      co_return ResourceExhausted(name_ + ": " + std::to_string(waiting_.size()) +
                                  " wait already, which is all that it takes; retry later");
    waiting_.push_back(job);
    if (!thread_.joinable()) thread_ = std::thread([this] { Main(); });
  }
  changed_.notify_one();
  const CancelCallback gone(scope, [&done] { done.Set(); });
  (void)co_await done.WaitUntil(TimePoint::max());
  {
    std::lock_guard lock(job->mutex);
    job->awaited = false;
  }
  job->done = nullptr;
  if (!job->ran) {  // one that waits still does not keep its place
    std::lock_guard lock(mutex_);
    std::erase(waiting_, job);
  }
  co_return job->ran ? OkStatus() : Cancelled(name_ + ": stopped before it was done");
}

void WorkThread::Main() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    {
      std::lock_guard lock(job->mutex);
      if (!job->awaited) continue;
    }
    std::exchange(job->work, nullptr)();
    std::lock_guard lock(job->mutex);
    if (!job->awaited) continue;
    loop_->Post([job] {
      job->ran = true;
      if (job->done != nullptr) job->done->Set();
    });
  }
}

}  // namespace cachalot::rpc
