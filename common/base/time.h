#pragma once
// Monotonic time. Decisions take a Clock so that tests can move it; no absolute time crosses the wire.

#include <chrono>
#include <cstdint>

namespace cachalot {

using Duration = std::chrono::nanoseconds;
using TimePoint = std::chrono::steady_clock::time_point;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  TimePoint Now() const override;
};

/// A clock for tests: it stands still until Advance.
class FakeClock final : public Clock {
 public:
  TimePoint Now() const override { return now_; }
  void Advance(Duration by) { now_ += by; }

 private:
  TimePoint now_{};
};

double Seconds(Duration duration);

}  // namespace cachalot
