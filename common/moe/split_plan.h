#pragma once
// A step's dispatch plan cut into what each expert shard has to do. A pure function.

#include <cstdint>
#include <vector>

#include "common/moe/dispatch_plan.h"

namespace cachalot {

/// One shard's part, its rows and slots numbered from 0: what goes into a call frame, and where the reply's
/// slots belong.
struct ShardPlan {
  std::vector<ExpertAssignment> assignments;  // ascending (expert, row)
  std::vector<int32_t> rows;   // the caller's number of each of our rows, ascending; each row once
  std::vector<int32_t> slots;  // the caller's number of each of our slots, ascending (row, group)

  bool empty() const { return assignments.empty(); }
};

class PlanSplitter {
 public:
  /// Reduction group g belongs to shard g / (groups / shards); `shards` divides `groups`. Every slot of
  /// `plan` goes to exactly one shard. Reuses the memory of earlier splits.
  const std::vector<ShardPlan>& Split(const DispatchPlan& plan, int groups, int shards);

 private:
  std::vector<ShardPlan> shards_;
  std::vector<int32_t> slot_shard_, local_slot_, local_row_;  // of each of the caller's slots
};

}  // namespace cachalot
