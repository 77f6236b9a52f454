#include "common/moe/dispatch_plan.h"

#include <algorithm>
#include <tuple>

#include "common/base/check.h"

namespace cachalot {

GroupRanges GroupRanges::Make(int experts, int groups) {
  GroupRanges ranges;
  for (int g = 0; g <= groups; ++g)
    ranges.begin.push_back(static_cast<int>(static_cast<int64_t>(experts) * g / groups));
  return ranges;
}

int GroupRanges::GroupOf(int expert) const {
  return static_cast<int>(std::upper_bound(begin.begin(), begin.end(), expert) - begin.begin()) - 1;
}

void DispatchPlan::Build(std::span<const int32_t> ids, std::span<const float> weights, int k,
                         const GroupRanges& groups) {
  CHECK(k > 0 && ids.size() % k == 0 && ids.size() == weights.size());
  const int32_t rows = static_cast<int32_t>(ids.size() / k);
  scratch_.clear();
  slot_row.clear();
  slot_group.clear();
  row_slots.assign(1, 0);
  for (int32_t r = 0; r < rows; ++r) {
    const size_t first = scratch_.size();
    for (int i = 0; i < k; ++i) scratch_.push_back({r, 0, ids[r * k + i], weights[r * k + i]});
    std::sort(scratch_.begin() + first, scratch_.end(),
              [](const auto& a, const auto& b) { return a.expert < b.expert; });
    int last_group = -1;
    for (size_t i = first; i < scratch_.size(); ++i) {
      const int group = groups.GroupOf(scratch_[i].expert);
      if (group != last_group) {
        slot_row.push_back(r);
        slot_group.push_back(group);
        last_group = group;
      }
      scratch_[i].slot = static_cast<int32_t>(slot_row.size()) - 1;
    }
    row_slots.push_back(static_cast<int32_t>(slot_row.size()));
  }
  assignments = scratch_;
  std::sort(assignments.begin(), assignments.end(), [](const auto& a, const auto& b) {
    return std::tie(a.expert, a.row) < std::tie(b.expert, b.row);
  });
}

void CombinePartials(const DispatchPlan& plan, const float* partials, const float* shared, int64_t hidden,
                     float* out) {
  for (int64_t r = 0; r < plan.rows(); ++r) {
    float* y = out + r * hidden;
    const int32_t begin = plan.row_slots[r], end = plan.row_slots[r + 1];
    for (int64_t i = 0; i < hidden; ++i) {
      float sum = partials[begin * hidden + i];
      for (int32_t s = begin + 1; s < end; ++s) sum += partials[s * hidden + i];
      y[i] = sum + shared[r * hidden + i];
    }
  }
}

}  // namespace cachalot
