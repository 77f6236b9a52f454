#include "common/moe/split_plan.h"

#include "common/base/check.h"

namespace cachalot {

const std::vector<ShardPlan>& PlanSplitter::Split(const DispatchPlan& plan, int groups, int shards) {
  CHECK(shards > 0 && groups % shards == 0);
  shards_.resize(shards);
  for (ShardPlan& shard : shards_) {
    shard.assignments.clear();
    shard.rows.clear();
    shard.slots.clear();
  }
  slot_shard_.resize(plan.slots());
  local_slot_.resize(plan.slots());
  local_row_.resize(plan.slots());
  const int groups_per_shard = groups / shards;
  for (int32_t s = 0; s < plan.slots(); ++s) {
    slot_shard_[s] = plan.slot_group[s] / groups_per_shard;
    ShardPlan& shard = shards_[slot_shard_[s]];
    // Slots ascend by row, so a row that this shard has already is its last one.
    if (shard.rows.empty() || shard.rows.back() != plan.slot_row[s]) shard.rows.push_back(plan.slot_row[s]);
    local_row_[s] = static_cast<int32_t>(shard.rows.size()) - 1;
    local_slot_[s] = static_cast<int32_t>(shard.slots.size());
    shard.slots.push_back(s);
  }
  // Ascending (expert, row) stays so: the rows' new numbers ascend as the old ones do.
  for (const ExpertAssignment& a : plan.assignments)
    shards_[slot_shard_[a.slot]].assignments.push_back(
        {local_row_[a.slot], local_slot_[a.slot], a.expert, a.weight});
  return shards_;
}

}  // namespace cachalot
