#pragma once
// Durations as messages print them.

#include <string>

#include "common/base/time.h"

namespace cachalot {

/// To the millisecond and no longer than need be: "8 s", "0.25 s".
std::string SecondsText(Duration duration);

}  // namespace cachalot
