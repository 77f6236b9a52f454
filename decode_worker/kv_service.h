#pragma once
// KvTransfer.Push: prefill workers push KV frames, each hand-off gets a verdict
// (protos/cachalot/v1/kv_transfer.proto). The I/O around KvIntake; on the control loop.

#include <set>

#include "cachalot/v1/kv_transfer.grpc.pb.h"
#include "common/rpc/server.h"
#include "decode_worker/kv_intake.h"
#include "decode_worker/metrics.h"

namespace cachalot {

class KvService {
 public:
  /// Registers with `server` on `loop`. `linger`: how long a prefill worker may take to end a stream that has its
  /// verdict or has lost its lease. Everything given must outlive this, and this must outlive the server.
  KvService(rpc::Server* server, rpc::Loop* loop, KvIntake& intake, LeaseTable& leases,
            DecodeMetrics& metrics, Duration linger);

  /// Ends streams that nobody needs and that their prefill worker, which may hang, does not end itself.
  void Tick();

 private:
  struct Push {
    rpc::ServerCall* call;
    TimePoint heard;
    uint64_t lease = 0;
    bool judged = false;  // the last frame got a verdict
    bool lost = false;    // which was an error: nothing more is wanted
    bool stale = false;
  };
  rpc::Task<Status> Serve(rpc::ServerCall& call, rpc::RawServerStream& stream);

  rpc::Loop* loop_;
  KvIntake& intake_;
  LeaseTable& leases_;
  DecodeMetrics& metrics_;
  const Duration linger_;
  v1::KvTransfer::WithRawMethod_Push<v1::KvTransfer::Service> service_;
  std::set<Push*> pushes_;
};

}  // namespace cachalot
