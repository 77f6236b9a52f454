#pragma once
// Which members come and go when a name's addresses change: a pure function.

#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

struct MemberState {
  std::string address;
  bool listed = false;    // given by flag: it stays, whatever DNS says
  bool draining = false;  // it had left DNS: no new requests
  bool busy = false;      // requests of ours are there
  bool answers = false;   // and fits; it may drain
};

struct MemberPlan {
  std::vector<std::string> add;      // new addresses, in the order of `resolved`
  std::vector<size_t> drain;         // members that have left: no new requests
  std::vector<size_t> restore;       // draining members that are back
  std::vector<size_t> remove;        // draining (or drained now) and idle, or silent: nothing is lost
};

/// `resolved`: the members' addresses by DNS, of all names together. A failed or empty answer says nothing about
/// anybody: nobody is added or drained, and only members that an earlier answer drained are removed. Indices point into `current`; a member in `remove` may be in `drain` too.
MemberPlan PlanMembers(std::span<const MemberState> current,
                       const StatusOr<std::vector<std::string>>& resolved);

}  // namespace cachalot
