#pragma once
// How long tests wait for what should take milliseconds, before they say that it did not come.

#include <chrono>

#include "common/base/time.h"

namespace cachalot::testing {

/// How much slower everything may be: 1, or 10 in builds with sanitizers, as CTest's time-outs are.
inline constexpr int kSlowdown = CACHALOT_SLOWDOWN;
inline constexpr Duration kPatience = std::chrono::seconds(30) * kSlowdown;

}  // namespace cachalot::testing
