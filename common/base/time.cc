#include "common/base/time.h"

namespace cachalot {

TimePoint SteadyClock::Now() const { return std::chrono::steady_clock::now(); }

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace cachalot
