#include "common/rpc/loop.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/rpc/event.h"

namespace cachalot::rpc {
namespace {

// How long tasks may outlive the grace, with everything that they wait for cancelled.
constexpr Duration kHardStop = std::chrono::seconds(10);

// GPR_CLOCK_MONOTONIC, never GPR_TIMESPAN: gRPC 1.51 takes a millisecond over the latter.
const gpr_timespec kNoWait = gpr_time_0(GPR_CLOCK_MONOTONIC);

}  // namespace

gpr_timespec ToGprTime(TimePoint when) {
  // gRPC's monotonic clock and steady_clock are both CLOCK_MONOTONIC.
  if (when == TimePoint::max()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const int64_t nanoseconds = std::max<int64_t>(when.time_since_epoch().count(), 0);
  gpr_timespec time;
  time.tv_sec = nanoseconds / 1'000'000'000;
  time.tv_nsec = static_cast<int32_t>(nanoseconds % 1'000'000'000);
  time.clock_type = GPR_CLOCK_MONOTONIC;
  return time;
}

TimePoint FromGprTime(gpr_timespec when) {
  const gpr_timespec time = gpr_convert_clock_type(when, GPR_CLOCK_MONOTONIC);
  constexpr int64_t kFar = 1'000'000'000;  // seconds; also what gRPC's infinity becomes
  if (time.tv_sec >= kFar) return TimePoint::max();
  return TimePoint(std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec));
}

// Lives in the frame of a spawned task, from its spawning to its end.
struct Loop::LiveTask {
  LiveTask(Loop* owner, const char* what) : loop(owner), name(what), next(owner->tasks_) {
    if (next != nullptr) next->previous = this;
    loop->tasks_ = this;
    ++loop->live_tasks_;
  }
  ~LiveTask() {
    (previous != nullptr ? previous->next : loop->tasks_) = next;
    if (next != nullptr) next->previous = previous;
    --loop->live_tasks_;
  }
  LiveTask(const LiveTask&) = delete;

  Loop* loop;
  const char* name;
  LiveTask* next;
  LiveTask* previous = nullptr;
};

struct Loop::Detached {
  struct promise_type {
    Detached get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };
  std::coroutine_handle<promise_type> frame;
};

Loop::Detached Loop::RunDetached(Loop* loop, Task<void> task, const char* name) {
  LiveTask live(loop, name);
  co_await std::move(task);
}

Loop::Loop(LoopOptions options) : Loop(std::move(options), std::make_unique<grpc::CompletionQueue>()) {}

Loop::Loop(LoopOptions options, std::unique_ptr<grpc::CompletionQueue> queue)
    : options_(std::move(options)),
      queue_(std::move(queue)),
      stop_requested_(std::make_unique<Event>(this)) {}

Loop::~Loop() {
  Shutdown(Duration::zero());
  if (thread_.joinable()) {
    CHECK(thread_.get_id() != std::this_thread::get_id());
    thread_.join();
  } else if (!stopped_.load()) {
    owner_.store(std::thread::id());  // whoever drove it has gone
    while (PollOnce(TimePoint::max()) != Poll::kStopped) {
    }
  }
}

void Loop::Start() {
  CHECK(!thread_.joinable());
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), options_.name.substr(0, 15).c_str());
    while (PollOnce(TimePoint::max()) != Poll::kStopped) {
    }
    std::lock_guard lock(mutex_);
    thread_ended_ = true;
    ended_.notify_all();
  });
}

bool Loop::Join(TimePoint deadline) {
  if (!thread_.joinable()) return true;
  {
    std::unique_lock lock(mutex_);
    if (!ended_.wait_until(lock, deadline, [this] { return thread_ended_; })) return false;
  }
  thread_.join();
  return true;
}

bool Loop::InLoop() const {
  const std::thread::id owner = owner_.load(std::memory_order_relaxed);
  return owner == std::thread::id() || owner == std::this_thread::get_id();
}

bool Loop::Post(std::function<void()> work) {
  std::lock_guard lock(mutex_);
  if (closed_) return false;
  posted_.push_back(std::move(work));
  has_posted_.store(true, std::memory_order_release);
  if (sleeping_ && !wake_armed_) {
    wake_armed_ = true;
    alarm_.Set(queue_.get(), kNoWait, wake_.Arm());
  }
  return true;
}

void Loop::Wake::Complete(bool) {
  std::lock_guard lock(loop_->mutex_);
  loop_->wake_armed_ = false;
}

bool Loop::Spawn(Task<void> task, const char* name) {
  const auto frame = RunDetached(this, std::move(task), name).frame;
  if (owner_.load(std::memory_order_relaxed) == std::this_thread::get_id() && !queue_closed_) {
    Resume(frame);
    return true;
  }
  if (Post([this, frame] { Resume(frame); })) return true;
  frame.destroy();
  return false;
}

void Loop::Shutdown(Duration grace) {
  const TimePoint grace_end = Now() + grace;
  Post([this, grace_end] {
    grace_end_ = std::min(grace_end_, grace_end);
    stopping_ = true;
    stop_requested_->Set();
  });
}

Loop::Poll Loop::PollOnce(TimePoint deadline) {
  if (stopped_.load(std::memory_order_relaxed)) return Poll::kStopped;
  owner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  for (;;) {
    if (stopping_) AdvanceShutdown();
    bool ran = RunTimers();
    ran |= RunReady();
    // Even a loop that always has something ready looks at its queue once per turn.
    const TimePoint wait_until = ran || !ready_.empty() ? TimePoint::min() : NextWake(deadline);
    ran |= Spin(wait_until) || Sleep(wait_until);
    if (stopped_.load(std::memory_order_relaxed)) return Poll::kStopped;
    ran |= RunReady();
    if (ran) return Poll::kProgress;
    if (deadline != TimePoint::max() && Now() >= deadline) return Poll::kTimeout;
  }
}

// When to wake without any event: the caller's deadline, the next timer, the next step of a shutdown.
TimePoint Loop::NextWake(TimePoint deadline) const {
  TimePoint wake = deadline;
  if (!timers_.empty()) wake = std::min(wake, timers_.earliest()->deadline());
  if (stopping_ && !queue_closed_) wake = std::min(wake, draining_ ? grace_end_ + kHardStop : grace_end_);
  return wake;
}

// Polls without sleeping: once if `until` has passed, else for up to spin_us. True when something came.
bool Loop::Spin(TimePoint until) {
  const TimePoint now = Now();
  const TimePoint spin_end = std::min(until, now + std::chrono::microseconds(options_.spin_us));
  if (spin_end <= now && until > now) return false;  // Sleep asks the queue just as well
  do {
    if (TakeQueueEvent(TimePoint::min()) || has_posted_.load(std::memory_order_acquire)) return true;
  } while (Now() < spin_end);
  return false;
}

bool Loop::Sleep(TimePoint until) {
  if (until <= Now()) return false;
  {
    std::lock_guard lock(mutex_);
    if (!posted_.empty()) return true;
    sleeping_ = true;
  }
  const bool came = TakeQueueEvent(until);
  std::lock_guard lock(mutex_);
  sleeping_ = false;
  return came;
}

bool Loop::TakeQueueEvent(TimePoint deadline) {
  void* tag = nullptr;
  bool ok = false;
  switch (queue_->AsyncNext(&tag, &ok, deadline == TimePoint::min() ? kNoWait : ToGprTime(deadline))) {
    case grpc::CompletionQueue::GOT_EVENT:
      CqTag::Deliver(tag, ok);
      return true;
    case grpc::CompletionQueue::TIMEOUT:
      return false;
    case grpc::CompletionQueue::SHUTDOWN:
      stopped_.store(true);
      return true;
  }
  return false;
}

// Runs what was posted and what was ready; what they make ready comes next time.
bool Loop::RunReady() {
  if (has_posted_.load(std::memory_order_acquire)) {
    std::lock_guard lock(mutex_);
    posted_running_.swap(posted_);
    has_posted_.store(false, std::memory_order_relaxed);
  }
  const bool ran = !posted_running_.empty() || !ready_.empty();
  for (auto& work : posted_running_) work();
  posted_running_.clear();
  running_.swap(ready_);
  for (std::coroutine_handle<> waiting : running_) waiting.resume();
  running_.clear();
  return ran;
}

bool Loop::RunTimers() {
  if (timers_.empty() || timers_.earliest()->deadline() == TimePoint::max()) return false;
  const TimePoint now = Now();
  bool ran = false;
  while (!timers_.empty() && timers_.earliest()->deadline() <= now) {
    timers_.earliest()->Wake(false);
    ran = true;
  }
  return ran;
}

void Loop::AdvanceShutdown() {
  if (queue_closed_) return;
  const TimePoint now = Now();
  if (now >= grace_end_ && !draining_ && live_tasks_ > 0) {
    draining_ = true;
    scope_.Cancel();
    while (!timers_.empty()) timers_.earliest()->Wake(false);
  }
  if (live_tasks_ == 0 && ready_.empty()) {
    std::lock_guard lock(mutex_);
    if (!posted_.empty()) return;
    closed_ = true;
    queue_closed_ = true;
    queue_->Shutdown();
    return;
  }
  CheckHardStop(now);
}

void Loop::CheckHardStop(TimePoint now) {
  if (!draining_ || now < grace_end_ + kHardStop) return;
  std::string names;
  for (LiveTask* task = tasks_; task != nullptr; task = task->next)
    names += std::string(" '") + task->name + "'";
  CHECK_MSG(false, "loop " + options_.name + " cannot stop: tasks that do not end:" + names);
}

}  // namespace cachalot::rpc
