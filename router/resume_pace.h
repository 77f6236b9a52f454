#pragma once
// When a request that waits for KV asks a decode worker again. Pure: it is told the time.

#include <algorithm>

#include "common/base/time.h"

namespace cachalot {

/// Refusals make it ask later and later, up to 1 s. Reports that no worker has room are believed for `patience` only,
/// since they may be old; then it asks in spite of them, and is twice as patient, up to 32 s.
class ResumePace {
 public:
  ResumePace(Duration patience, int max_prefill_refusals)
      : first_patience_(patience), max_prefill_refusals_(max_prefill_refusals), patience_(patience) {}

  /// It ran until now: everything begins anew.
  void Preempted(TimePoint now) {
    backoff_ = Duration::zero();
    patience_ = first_patience_;
    prefill_refusals_ = 0;
    not_before_ = now;
  }
  /// It was refused for want of KV or of a place in a queue, under a lease by a prefill worker. False: those have
  /// refused it too often in a row.
  bool Refused(TimePoint now, bool by_prefill_worker) {
    if (by_prefill_worker && ++prefill_refusals_ > max_prefill_refusals_) return false;
    backoff_ = std::clamp<Duration>(2 * backoff_, kFirstBackoff, kLastBackoff);
    not_before_ = now + backoff_;
    return true;
  }
  void NotBefore(TimePoint time) { not_before_ = time; }
  void JoinsLine(TimePoint now) { asks_anyway_ = now + patience_; }
  bool MayAsk(TimePoint now) const { return now >= not_before_; }
  /// Whether to ask although no worker is known to have room: once for each true.
  bool AsksAnyway(TimePoint now) {
    if (now < asks_anyway_) return false;
    patience_ = std::min(2 * patience_, kLastPatience);
    asks_anyway_ = now + patience_;
    return true;
  }

 private:
  static constexpr Duration kFirstBackoff = std::chrono::milliseconds(20), kLastBackoff = std::chrono::seconds(1);
  static constexpr Duration kLastPatience = std::chrono::seconds(32);
  const Duration first_patience_;
  const int max_prefill_refusals_;
  Duration patience_, backoff_{};
  TimePoint not_before_{}, asks_anyway_{};
  int prefill_refusals_ = 0;
};

}  // namespace cachalot
