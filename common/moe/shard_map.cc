#include "common/moe/shard_map.h"

#include <algorithm>
#include <map>

#include "common/moe/dispatch_plan.h"

namespace cachalot {
namespace {

std::string Describe(const ShardInfo& info) {
  return info.address + " has shard " + std::to_string(info.shard) + "/" + std::to_string(info.shards) +
         ", experts [" + std::to_string(info.expert_begin) + ", " + std::to_string(info.expert_end) + ")";
}

}  // namespace

StatusOr<ShardMap> ShardMap::Make(std::vector<ShardInfo> services, int experts, int groups) {
  if (services.empty()) return FailedPrecondition("no expert services are given");
  const int shards = services[0].shards;
  if (shards < 1 || groups % shards != 0)
    return FailedPrecondition(Describe(services[0]) + ": " + std::to_string(shards) +
                              " shards do not divide the " + std::to_string(groups) + " reduction groups");
  const GroupRanges ranges = GroupRanges::Make(experts, groups);
  ShardMap map;
  map.groups_ = groups;
  map.infos_.resize(shards);
  for (const ShardInfo& info : services) {
    if (info.shards != shards)
      return FailedPrecondition("expert services of different layouts: " + Describe(services[0]) + "; " +
                                Describe(info));
    if (info.shard < 0 || info.shard >= shards) return FailedPrecondition(Describe(info) + ": no such shard");
    const int begin = ranges.begin[info.shard * (groups / shards)];
    const int end = ranges.begin[(info.shard + 1) * (groups / shards)];
    if (info.expert_begin != begin || info.expert_end != end)
      return FailedPrecondition(Describe(info) + ", but that shard of " + std::to_string(experts) +
                                " experts is [" + std::to_string(begin) + ", " + std::to_string(end) + ")");
    ShardInfo& place = map.infos_[info.shard];
    if (place.shards != 0)
      return FailedPrecondition("two expert services for one shard: " + Describe(place) + "; " +
                                Describe(info));
    place = info;
  }
  std::string missing;
  for (int s = 0; s < shards; ++s)
    if (map.infos_[s].shards == 0) missing += (missing.empty() ? "" : ", ") + std::to_string(s);
  if (!missing.empty())
    return FailedPrecondition("no expert service for shard " + missing + " of " + std::to_string(shards) +
                              "; " + std::to_string(services.size()) + " given");
  return map;
}

StatusOr<ShardMap> ShardMap::Choose(const std::vector<ShardInfo>& services, int experts, int groups) {
  std::map<int, std::vector<ShardInfo>> layouts;  // by how many shards there are
  std::vector<int> order;
  for (const ShardInfo& info : services) {
    std::vector<ShardInfo>& layout = layouts[info.shards];
    if (layout.empty()) order.push_back(info.shards);
    const bool known = std::any_of(layout.begin(), layout.end(),
                                   [&](const ShardInfo& other) { return other.shard == info.shard; });
    if (!known) layout.push_back(info);
  }
  StatusOr<ShardMap> map = FailedPrecondition("no expert service is known");
  for (const int shards : order) {
    StatusOr<ShardMap> made = Make(layouts[shards], experts, groups);
    if (made.ok()) return made;
    if (shards == order.front()) map = std::move(made);
  }
  return map;
}

Status ShardMap::CheckStandIn(int shard, const ShardInfo& info) const {
  const ShardInfo& known = infos_[shard];
  if (known.shard == info.shard && known.shards == info.shards && known.expert_begin == info.expert_begin &&
      known.expert_end == info.expert_end)
    return OkStatus();
  return FailedPrecondition(cachalot::Describe(info) + ", wanted that of " + cachalot::Describe(known));
}

Status ShardMap::CheckSame(const ShardInfo& info) const {
  for (const ShardInfo& known : infos_) {
    if (known.address != info.address) continue;
    if (known.shard == info.shard && known.shards == info.shards && known.expert_begin == info.expert_begin &&
        known.expert_end == info.expert_end)
      return OkStatus();
    return FailedPrecondition("an expert service came back as another shard: " + Describe(info) +
                              "; before, " + Describe(known));
  }
  return FailedPrecondition(info.address + " is none of the expert services");
}

std::string ShardMap::Name(int shard) const {
  return "shard " + std::to_string(shard) + "/" + std::to_string(shards()) + " at " + infos_[shard].address;
}

}  // namespace cachalot
