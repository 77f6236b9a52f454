#pragma once
// Who holds KV memory of this process and until when. Pure bookkeeping on the control loop's thread: no RPC
// in here.
//
// A lease lives from Grant to Release, or until its Session has been gone for the grace:
//   reserved --first row--> receiving --commit--> running     (a higher attempt goes back to an empty
//   receiving)
// While it runs, the step thread has its state and KV; the lease stays as the name that finds it.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"
#include "common/engine/generation.h"
#include "common/kv/transfer_frame.h"

namespace cachalot {

enum class LeasePhase : uint8_t { kReserved, kReceiving, kRunning };

struct Lease {
  Lease(uint64_t id, uint64_t session, uint64_t handle, SequenceState state, SequenceKv kv);
  Lease(const Lease&) = delete;  // the receiver points at the KV

  const uint64_t id, session, handle;
  const std::string request_id;
  SequenceState state;  // moved away when it runs, and so is kv
  SequenceKv kv;
  KvReceiver receiver;
  uint32_t attempt = 0;  // the highest whose frames came; 0: none yet
  LeasePhase phase = LeasePhase::kReserved;
  bool preemptible = false;  // its router opens it again when its KV is taken
};

struct LeaseOptions {
  Duration session_grace = std::chrono::seconds(3);      // leases outlive their Session by this much
  Duration heartbeat_timeout = std::chrono::seconds(2);  // a Session silent for so long counts as broken
};

class LeaseTable {
 public:
  /// `epoch` is this life of the process: leases of another are refused.
  LeaseTable(const Clock& clock, uint64_t epoch, LeaseOptions options);

  uint64_t OpenSession();
  /// Anything that the peer sends shows that it is alive.
  void Renew(uint64_t session);
  /// The Session's stream has ended: from here on its leases live for the grace. Idempotent.
  void BreakSession(uint64_t session);

  /// INVALID_ARGUMENT when the Session has this handle already. The Session must be open.
  StatusOr<Lease*> Grant(uint64_t session, uint64_t handle, SequenceState state, SequenceKv kv);
  /// Null for what is gone or never was.
  Lease* Find(uint64_t id);
  Lease* FindHandle(uint64_t session, uint64_t handle);
  /// As frames name it: ABORTED for an unknown lease or another epoch, which says that the process was
  /// restarted.
  StatusOr<Lease*> FindValid(uint64_t id, uint64_t epoch);
  /// Takes the lease out; its KV is freed with it unless it runs. Null when there is none.
  std::unique_ptr<Lease> Release(uint64_t id);

  struct Expired {
    std::vector<uint64_t> silent;                // Sessions that count as broken from now on
    std::vector<std::unique_ptr<Lease>> leases;  // of Sessions that have been gone for the grace
  };
  /// To be called often: what time has ended since the last call.
  Expired Expire();

  size_t size() const { return leases_.size(); }
  size_t sessions() const { return sessions_.size(); }
  uint64_t epoch() const { return epoch_; }
  TimePoint Now() const { return clock_.Now(); }
  const LeaseOptions& options() const { return options_; }

 private:
  struct Session {
    TimePoint heard;  // broken: since when
    bool broken = false;
    std::unordered_map<uint64_t, uint64_t> handles;  // to lease ids
  };

  const Clock& clock_;
  const uint64_t epoch_;
  const LeaseOptions options_;
  uint64_t next_session_ = 1;
  std::map<uint64_t, Session> sessions_;
  std::unordered_map<uint64_t, std::unique_ptr<Lease>> leases_;
};

}  // namespace cachalot
