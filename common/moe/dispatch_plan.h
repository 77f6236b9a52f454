#pragma once
// Which rows meet which experts, as a pure function of the router's choice. A slot is one (row, reduction group) pair
// that some expert touches; the experts of a slot are summed in ascending id, the slots of a row in ascending group
// (docs/numerics.md). Both orders are the same whoever computes a group.

#include <cstdint>
#include <span>
#include <vector>

namespace cachalot {

struct ExpertAssignment {
  int32_t row = 0;  // index into the rows of the call
  int32_t slot = 0;
  int32_t expert = 0;
  float weight = 0;
};

/// Expert ranges of the reduction groups: group g has experts [begin[g], begin[g+1]).
struct GroupRanges {
  std::vector<int> begin;  // [groups + 1]

  static GroupRanges Make(int experts, int groups);
  int groups() const { return static_cast<int>(begin.size()) - 1; }
  int GroupOf(int expert) const;
};

struct DispatchPlan {
  std::vector<ExpertAssignment> assignments;  // ascending (expert, row)
  std::vector<int32_t> slot_row, slot_group;  // [slots], ascending (row, group)
  std::vector<int32_t> row_slots;             // [rows + 1]: slots of row r are [row_slots[r], row_slots[r+1])

  int64_t slots() const { return static_cast<int64_t>(slot_row.size()); }
  int64_t rows() const { return static_cast<int64_t>(row_slots.size()) - 1; }

  /// ids, weights [rows, k]; ids distinct inside a row. Reuses this plan's memory.
  void Build(std::span<const int32_t> ids, std::span<const float> weights, int k, const GroupRanges& groups);

 private:
  std::vector<ExpertAssignment> scratch_;
};

/// out[row] = sum of the row's slots in ascending group, + shared[row]; [rows, hidden] each. In fp32.
void CombinePartials(const DispatchPlan& plan, const float* partials, const float* shared, int64_t hidden, float* out);

}  // namespace cachalot
