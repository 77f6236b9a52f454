#pragma once
// The identity that all workers of a router must share, so that KV never moves between workers that would
// compute different bits. The first worker that answers sets it; the others are measured against it. When no
// worker is left that has it, the next one that answers sets a new one: a rolling upgrade to other weights.

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <string>

#include "common/base/log.h"
#include "common/cluster/compat.h"
#include "router/worker_api.h"

namespace cachalot {

/// Loop thread only.
class ClusterView {
 public:
  /// OK when `compat` is the cluster's, or nobody else's that is still here. FAILED_PRECONDITION names the field
  /// that differs. `member` stands for the worker `peer`, whose earlier answers do not count any more. One that
  /// leaves (not `binds`) is compared only.
  Status Admit(const void* member, const v1::Compat& compat, const std::string& peer, bool binds = true) {
    if (!compat_ && binds) compat_ = compat;
    const Status status = compat_ ? CheckCompat(*compat_, compat, peer) : OkStatus();
    if (!binds) return status;
    if (status.ok()) {
      members_.insert(member);
      return status;
    }
    members_.erase(member);
    if (!members_.empty()) return status;
    LogWarning(StatusMessage(status) + "; but no worker is left that is as before: the cluster changes");
    compat_ = compat;
    members_.insert(member);
    ++generation_;
    if (on_change) on_change();
    return OkStatus();
  }
  /// `member` has gone, or gets no new work.
  void Leave(const void* member) { members_.erase(member); }

  const std::optional<v1::Compat>& compat() const { return compat_; }
  /// Changes with the identity. What was begun in one generation must not go on in another.
  uint64_t generation() const { return generation_; }

  std::function<void()> on_change;  // in the turn in which it happens

 private:
  std::optional<v1::Compat> compat_;
  std::set<const void*> members_;  // that have it and may get work
  uint64_t generation_ = 0;
};

/// What an output depends on beside its request, as clients compare it (Started.compat).
inline std::string OutputIdentity(const v1::Compat& compat) {
  return compat.weights() + "/" + compat.mode() + "/" + compat.numerics();
}

/// UNAVAILABLE while a worker that answers takes no new work: requests that would be refused are not sent to it.
inline Status ServingBy(const v1::Load& load) {
  return load.not_serving().empty() ? OkStatus() : Unavailable(load.not_serving());
}

/// A worker's figures, held in bounds in which sums of them stay numbers.
inline WorkerLoad LoadOf(const v1::Load& load) {
  const auto figure = [](int64_t said) { return std::clamp<int64_t>(said, 0, int64_t{1} << 40); };
  WorkerLoad of;
  of.running = figure(load.running_sequences());
  of.waiting_tokens = figure(load.waiting_tokens());
  of.free_kv_tokens = figure(load.free_kv_tokens());
  of.leases = figure(load.leases());
  of.kv_wanted = load.kv_wanted();
  return of;
}

/// INVALID_ARGUMENT for a request that cannot be sent to a worker.
inline Status TooLarge(size_t bytes, size_t at_most) {
  return InvalidArgument("the request has " + std::to_string(bytes) + " bytes, a worker takes at most " +
                         std::to_string(at_most));
}

/// FAILED_PRECONDITION names both roles.
inline Status CheckRole(v1::Role wanted, v1::Role got) {
  const auto name = [](v1::Role role) {
    switch (role) {
      case v1::ROLE_ROUTER:
        return "a router";
      case v1::ROLE_PREFILL:
        return "a prefill worker";
      case v1::ROLE_DECODE:
        return "a decode worker";
      case v1::ROLE_EXPERT:
        return "an expert service";
      default:
        return "a role that this router does not know";
    }
  };
  if (wanted == got) return OkStatus();
  return FailedPrecondition(std::string("wanted ") + name(wanted) + ", it is " + name(got));
}

}  // namespace cachalot
