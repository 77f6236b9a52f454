#pragma once
// When a request that waits for KV asks a decode worker again. Pure: it is told the time.

#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/base/time.h"

namespace cachalot {

/// Refusals make it ask later and later, up to 1 s. Reports that no worker has room are believed for `patience` only,
/// since they may be old; then it asks in spite of them, and is twice as patient, up to 32 s.
class ResumePace {
 public:
  ResumePace(Duration patience, Duration prefill_patience)
      : first_patience_(patience), prefill_patience_(prefill_patience), patience_(patience) {}

  /// It ran until now: everything begins anew.
  void Preempted(TimePoint now) {
    backoff_ = Duration::zero();
    patience_ = first_patience_;
    refused_since_.reset();
    not_before_ = now;
  }
  /// It was refused for want of KV.
  void Refused(TimePoint now) {
    backoff_ = std::clamp<Duration>(2 * backoff_, kFirstBackoff, kLastBackoff);
    not_before_ = now + backoff_;
  }
  /// It was refused by the prefill workers, for want of KV or of a place in a queue, when it had `tokens` tokens of
  /// output. False: they have done so for too long, and it has got no token meanwhile.
  bool RefusedByPrefill(TimePoint now, int64_t tokens) {
    if (tokens != refused_at_) refused_since_.reset();
    refused_at_ = tokens;
    if (!refused_since_) refused_since_ = now;
    Refused(now);
    return now - *refused_since_ < prefill_patience_;
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
  const Duration prefill_patience_;
  Duration patience_, backoff_{};
  TimePoint not_before_{}, asks_anyway_{};
  std::optional<TimePoint> refused_since_;  // by prefill workers, in a row
  int64_t refused_at_ = 0;
};

}  // namespace cachalot
