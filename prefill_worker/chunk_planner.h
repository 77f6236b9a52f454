#pragma once
// Which tokens the next prefill step takes: a pure function.

#include <cstdint>
#include <span>
#include <vector>

namespace cachalot {

/// Tokens to take from each job, jobs in order of arrival: the oldest first, as many as fit into `budget`,
/// the last one cut. `limits[i]` > 0 caps what one step takes of job i. remaining[i] > 0. Sums to at most
/// `budget` (>= 1).
std::vector<int64_t> PlanChunk(std::span<const int64_t> remaining, std::span<const int64_t> limits,
                               int64_t budget);

}  // namespace cachalot
