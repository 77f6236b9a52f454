#pragma once
// How often a request may be tried, and for how long it may look for somebody who takes it. Pure: it is told the
// time.

#include <algorithm>
#include <optional>

#include "common/base/time.h"

namespace cachalot {

/// A try that a worker took and failed costs one of `tries`, so that a request which kills its workers ends. One
/// that nobody took costs none for `wait` since the first of them in a row: the only worker may be on its way
/// back. Those are paced, later and later.
class RetryBudget {
 public:
  RetryBudget(int tries, Duration wait) : tries_(tries), wait_(wait) {}

  /// A try has failed at `now`. Whether there may be another.
  bool Failed(TimePoint now, bool nobody_took_it) {
    if (nobody_took_it) {
      if (!since_) since_ = now;
      pause_ = std::clamp<Duration>(2 * pause_, kFirstPause, kLastPause);
      if (now - *since_ < wait_) {
        not_before_ = now + pause_;
        return true;
      }
    } else {
      since_ = now;
      pause_ = Duration::zero();
    }
    not_before_ = now + pause_;
    return ++failed_ < tries_;
  }
  /// Somebody has taken it, or has said when to come again.
  void Met() {
    since_.reset();
    pause_ = Duration::zero();
  }
  /// When a worker that has failed it already may be asked again.
  TimePoint not_before() const { return not_before_; }
  /// Until when to look for a worker.
  TimePoint end(TimePoint now) const { return since_.value_or(now) + wait_; }

 private:
  static constexpr Duration kFirstPause = std::chrono::milliseconds(20), kLastPause = std::chrono::seconds(1);
  const int tries_;
  const Duration wait_;
  int failed_ = 0;
  std::optional<TimePoint> since_;  // nobody has been there
  Duration pause_{};
  TimePoint not_before_{};
};

}  // namespace cachalot
