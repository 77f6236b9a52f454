#include "prefill_worker/chunk_planner.h"

#include <algorithm>

namespace cachalot {

std::vector<int64_t> PlanChunk(std::span<const int64_t> remaining, std::span<const int64_t> limits,
                               int64_t budget) {
  std::vector<int64_t> take(remaining.size());
  for (size_t i = 0; i < remaining.size() && budget > 0; ++i) {
    take[i] = std::min(remaining[i], budget);
    if (limits[i] > 0) take[i] = std::min(take[i], limits[i]);
    budget -= take[i];
  }
  return take;
}

}  // namespace cachalot
