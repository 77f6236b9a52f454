#include "decode_worker/lease_table.h"

#include "common/base/check.h"
#include "common/base/ids.h"

namespace cachalot {

Lease::Lease(uint64_t id_, uint64_t session_, uint64_t handle_, SequenceState state_, SequenceKv kv_)
    : id(id_),
      session(session_),
      handle(handle_),
      request_id(state_.request_id),
      state(std::move(state_)),
      kv(std::move(kv_)),
      receiver(&kv, kv.capacity()) {}

LeaseTable::LeaseTable(const Clock& clock, uint64_t epoch, LeaseOptions options)
    : clock_(clock), epoch_(epoch), options_(options) {}

uint64_t LeaseTable::OpenSession() {
  const uint64_t session = next_session_++;
  sessions_[session].heard = clock_.Now();
  return session;
}

void LeaseTable::Renew(uint64_t session) {
  const auto found = sessions_.find(session);
  if (found != sessions_.end() && !found->second.broken) found->second.heard = clock_.Now();
}

void LeaseTable::BreakSession(uint64_t session) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end() || found->second.broken) return;
  found->second.broken = true;
  found->second.heard = clock_.Now();
  if (found->second.handles.empty()) sessions_.erase(found);
}

StatusOr<Lease*> LeaseTable::Grant(uint64_t session, uint64_t handle, SequenceState state, SequenceKv kv) {
  const auto found = sessions_.find(session);
  CHECK(found != sessions_.end() && !found->second.broken);
  uint64_t id = RandomId();
  while (leases_.contains(id)) id = RandomId();
  if (!found->second.handles.emplace(handle, id).second)
    return InvalidArgument("handle " + std::to_string(handle) + " is in use in this Session");
  auto lease = std::make_unique<Lease>(id, session, handle, std::move(state), std::move(kv));
  return leases_.emplace(id, std::move(lease)).first->second.get();
}

Lease* LeaseTable::Find(uint64_t id) {
  const auto found = leases_.find(id);
  return found == leases_.end() ? nullptr : found->second.get();
}

Lease* LeaseTable::FindHandle(uint64_t session, uint64_t handle) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return nullptr;
  const auto lease = found->second.handles.find(handle);
  return lease == found->second.handles.end() ? nullptr : Find(lease->second);
}

StatusOr<Lease*> LeaseTable::FindValid(uint64_t id, uint64_t epoch) {
  if (epoch != epoch_)
    return Aborted("lease " + HexId(id) + " is of epoch " + HexId(epoch) + ", this decode worker is " +
                   HexId(epoch_) + ": it was restarted");
  Lease* lease = Find(id);
  if (!lease) return Aborted("lease " + HexId(id) + " is not valid any more");
  return lease;
}

std::unique_ptr<Lease> LeaseTable::Release(uint64_t id) {
  const auto found = leases_.find(id);
  if (found == leases_.end()) return nullptr;
  std::unique_ptr<Lease> lease = std::move(found->second);
  leases_.erase(found);
  const auto session = sessions_.find(lease->session);
  CHECK(session != sessions_.end() && session->second.handles.erase(lease->handle) == 1);
  if (session->second.broken && session->second.handles.empty()) sessions_.erase(session);
  return lease;
}

LeaseTable::Expired LeaseTable::Expire() {
  Expired expired;
  std::vector<uint64_t> ended;
  const TimePoint now = clock_.Now();
  for (auto& [id, session] : sessions_) {
    if (!session.broken && now - session.heard >= options_.heartbeat_timeout) expired.silent.push_back(id);
    if (session.broken && now - session.heard >= options_.session_grace)
      for (const auto& [handle, lease] : session.handles) ended.push_back(lease);
  }
  for (uint64_t id : expired.silent) BreakSession(id);
  for (uint64_t id : ended) expired.leases.push_back(Release(id));
  return expired;
}

}  // namespace cachalot
