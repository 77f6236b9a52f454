#pragma once
// How soon a child that has ended starts again. Pure: it is told the times.

#include <algorithm>

#include "common/base/time.h"

namespace cachalot {

/// At once the first time, nearly: a crash in hours should cost nothing. One that ends again before it has run for 10 s
/// waits twice as long each time, up to 10 s, so that what cannot start does not fill the log.
class RestartPace {
 public:
  /// The pause before the next start of one that has ended after `ran`.
  Duration Ended(Duration ran) {
    pause_ = ran >= kLongRun ? kFirst : std::clamp<Duration>(2 * pause_, kFirst, kLast);
    return pause_;
  }

 private:
  static constexpr Duration kLongRun = std::chrono::seconds(10);
  static constexpr Duration kFirst = std::chrono::milliseconds(200), kLast = std::chrono::seconds(10);
  Duration pause_{};
};

}  // namespace cachalot
