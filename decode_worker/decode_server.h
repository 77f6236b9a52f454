#pragma once
// The decode worker as one object: control loop with its services, step thread, model and KV memory.
//
//   router --Session--> SessionService --lease--> LeaseTable <--frames-- KvService <--Push-- prefill worker
//                            ^                        | commit
//                            +---- tokens ---- StepLoop (its own thread)

#include <memory>
#include <optional>
#include <string>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "common/cluster/assets.h"
#include "common/kernels/kernels.h"
#include "common/model/forward.h"
#include "common/rpc/health.h"
#include "common/rpc/server.h"
#include "decode_worker/kv_service.h"
#include "decode_worker/session_service.h"

namespace cachalot {

struct DecodeServerOptions {
  std::string listen = "127.0.0.1:0";
  int threads = 1;  // of the step: the step thread counts as one
  int spin_us = 0;  // of the step thread before it sleeps; needs a core to itself
  int64_t kv_tokens = 262144;
  int max_sequences = 256;
  DecodeOptions decode;
  LeaseOptions leases;
  SessionOptions sessions;
  Duration kv_linger = std::chrono::seconds(5);  // of a KV push that nobody needs
  Duration experts_ready = std::chrono::seconds(10);  // how long Start waits for the experts
  // A step thread that has not moved for so long counts as hung: "liveness" says so. A layer of experts may
  // take their time-out.
  Duration hang_limit = std::chrono::seconds(10);
  std::optional<v1::GetModelAssetsResponse> assets;   // served to routers, when given
};

class DecodeServer {
 public:
  /// `clock` judges leases and outages; everything given must outlive this.
  DecodeServer(std::shared_ptr<const ModelWeights> weights, const kernels::KernelTable& kernels,
               const Clock& clock, MetricsRegistry& metrics, DecodeServerOptions options);
  ~DecodeServer();

  /// Listens, then starts the step thread and its experts; ready when it returns OK. Once.
  Status Start(StepLoop::MakeExperts make_experts);
  /// The experts that live in this process, for Start. The weights must have all of them.
  StepLoop::MakeExperts LocalBackend();

  /// Blocks, for a SIGTERM: no new leases, readiness off; returns when every lease has ended, or after
  /// `at_most`.
  void Drain(Duration at_most);
  /// Ends everything at once; behind a Drain, calls that end by themselves keep a moment for it. Idempotent.
  void Stop();

  int port() const { return server_->port(); }
  uint64_t epoch() const { return leases_.epoch(); }
  const v1::Compat& compat() const { return compat_; }
  const BlockPools& pools() const { return pools_; }

 private:
  rpc::Task<Status> Describe(rpc::ServerCall& call, const v1::DescribeRequest& request,
                             v1::Description* reply);
  rpc::Task<void> Tick();
  rpc::Task<Status> WaitDrained(TimePoint deadline);
  void StartSequence(Lease& lease, int32_t first_token);
  void UpdateHealth();

  const DecodeServerOptions options_;
  const std::shared_ptr<const ModelWeights> weights_;
  const kernels::KernelTable& kernels_;
  ThreadPool threads_;
  Model model_;
  BlockPools pools_;
  const v1::Compat compat_;
  DecodeMetrics metrics_;
  const SteadyClock steady_;  // for latencies; `clock` may be a test's
  StepLoop step_;
  LeaseTable leases_;
  KvIntake intake_;
  rpc::HealthState health_;
  bool ready_ = false;  // control loop
  bool drained_ = false;

  v1::Cluster::WithAsyncMethod_Describe<v1::Cluster::Service> cluster_;
  std::unique_ptr<rpc::Server> server_;  // goes before the services
  rpc::Loop* control_;
  SessionService sessions_;
  KvService kv_;
  rpc::HealthService health_service_;
  std::unique_ptr<AssetsService> assets_;
};

}  // namespace cachalot
