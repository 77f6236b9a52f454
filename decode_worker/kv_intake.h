#pragma once
// Judges the frames of KV hand-offs (docs/kv.md): which lease they are for, whether that still wants them,
// where their rows go. Pure: bytes in, verdict out; kv_service does the I/O. Control loop's thread.

#include <functional>
#include <optional>
#include <span>

#include "common/model/config.h"
#include "decode_worker/lease_table.h"

namespace cachalot {

class KvIntake {
 public:
  /// The lease's KV is complete and it counts as running: whoever is called takes `state` and `kv` out of it.
  using StartSequence = std::function<void(Lease& lease, int32_t first_token)>;

  KvIntake(LeaseTable& leases, const ModelConfig& config, StartSequence start);

  struct Result {
    uint64_t lease = 0, epoch = 0;  // as the frame says, for the answer
    uint32_t attempt = 0;
    /// Nothing for rows that were placed. Else the answer to the sender: OK for a commit; with an error the
    /// attempt is lost and nothing more of it is wanted. ABORTED: the lease or the attempt is not valid any
    /// more.
    std::optional<Status> verdict;
    bool stale = false;  // dropped: of an older attempt
  };
  Result Receive(std::span<const std::byte> frame);

 private:
  Status TakeOver(Lease& lease, uint32_t attempt);
  Status Commit(Lease& lease, const KvFrameView& frame);
  Status CheckCommit(const Lease& lease, const KvCommit& commit) const;

  LeaseTable& leases_;
  const ModelConfig& config_;
  const StartSequence start_;
};

}  // namespace cachalot
