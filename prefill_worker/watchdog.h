#pragma once
// A deadline for operations that have none of their own: gRPC's reads and writes end only with their call.
// The owner says what it waits for; when that takes too long the watchdog barks, which should cancel the
// call.

#include <functional>
#include <string>
#include <utility>

#include "common/base/seconds_text.h"
#include "common/base/time.h"
#include "common/rpc/event.h"
#include "common/rpc/loop.h"
#include "common/rpc/task.h"

namespace cachalot {

/// Loop thread only. Barks at most once.
class Watchdog {
 public:
  Watchdog(rpc::Loop* loop, std::function<void()> bark)
      : loop_(loop), changed_(loop), bark_(std::move(bark)) {}

  /// From now on the owner waits for `what` (static storage), at most `within`.
  void Expect(const char* what, Duration within) {
    what_ = what;
    within_ = within;
    deadline_ = loop_->Now() + within;
    if (deadline_ < sleeps_until_) changed_.Set();
  }
  /// What the owner waits for, if anything, takes `within` from now at most.
  void Hurry(Duration within) {
    if (deadline_ == TimePoint::max() || deadline_ <= loop_->Now() + within) return;
    Expect(what_, within);
  }
  /// The owner waits for nothing that has a deadline.
  void Rest() { deadline_ = TimePoint::max(); }
  void Stop() {
    stopped_ = true;
    changed_.Set();
  }

  bool barked() const { return barked_; }
  /// What did not happen in time: "take a KV frame within 5 s".
  std::string missed() const { return what_ + (" within " + SecondsText(within_)); }

  /// Runs until Stop, a bark or the end of the loop; the watchdog must outlive it.
  rpc::Task<void> Run() {
    while (!stopped_ && !loop_->draining()) {
      changed_.Reset();
      sleeps_until_ = deadline_;
      const bool changed = co_await changed_.WaitUntil(sleeps_until_);
      // A deadline that moved on meanwhile costs one wake-up here, not one a move.
      if (changed || loop_->Now() < deadline_) continue;
      barked_ = true;
      bark_();
      break;
    }
  }

 private:
  rpc::Loop* loop_;
  rpc::Event changed_;
  std::function<void()> bark_;
  const char* what_ = "";
  Duration within_{};
  TimePoint deadline_ = TimePoint::max(), sleeps_until_ = TimePoint::max();
  bool stopped_ = false, barked_ = false;
};

}  // namespace cachalot
