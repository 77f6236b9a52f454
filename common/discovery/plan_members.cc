#include "common/discovery/plan_members.h"

#include <algorithm>

namespace cachalot {

MemberPlan PlanMembers(std::span<const MemberState> current,
                       const StatusOr<std::vector<std::string>>& resolved) {
  MemberPlan plan;
  const bool answered = resolved.ok() && !resolved->empty();
  const auto in_dns = [&](const std::string& address) {
    return std::find(resolved->begin(), resolved->end(), address) != resolved->end();
  };
  for (size_t i = 0; i < current.size(); ++i) {
    const MemberState& member = current[i];
    if (member.listed) continue;
    bool leaves = member.draining;
    if (answered) {
      leaves = !in_dns(member.address);
      if (leaves && !member.draining) plan.drain.push_back(i);
      if (!leaves && member.draining) plan.restore.push_back(i);
    }
    if (leaves && (!member.busy || !member.answers)) plan.remove.push_back(i);
  }
  if (!answered) return plan;
  for (const std::string& address : *resolved) {
    const bool known = std::any_of(current.begin(), current.end(),
                                   [&](const MemberState& m) { return m.address == address; });
    const bool twice = std::find(plan.add.begin(), plan.add.end(), address) != plan.add.end();
    if (!known && !twice) plan.add.push_back(address);
  }
  return plan;
}

}  // namespace cachalot
