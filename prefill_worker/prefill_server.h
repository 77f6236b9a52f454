#pragma once
// A whole prefill worker but for its flags: model, KV, step thread, services, health. main.cc and the tests
// make one.

#include <memory>
#include <optional>
#include <string>

#include "common/base/thread_pool.h"
#include "common/cluster/assets.h"
#include "common/kv/block_pool.h"
#include "common/model/forward.h"
#include "common/rpc/health.h"
#include "common/rpc/server.h"
#include "prefill_worker/prefill_service.h"
#include "prefill_worker/prefix_cache.h"
#include "prefill_worker/prefix_cache_metrics.h"

namespace cachalot {

struct PrefillServerOptions {
  std::string listen = "127.0.0.1:0";
  int64_t max_chunk_tokens = 256;
  int64_t kv_tokens = 262144;
  int max_sequences = 64;
  PrefixCacheOptions prefix_cache;
  PrefillServiceOptions service;
  std::optional<v1::GetModelAssetsResponse> assets;   // served to routers, when given
  Duration experts_ready = std::chrono::seconds(10);  // how long Start waits for the experts
  /// The step thread counts as hung when it shows no sign of life for so long.
  Duration hang_limit = std::chrono::seconds(10);
};

/// What it computes with; the threads outlive the server.
struct PrefillEngine {
  std::shared_ptr<const ModelWeights> weights;
  const kernels::KernelTable* kernels = nullptr;
  ThreadPool* threads = nullptr;
};

class PrefillServer {
 public:
  PrefillServer(PrefillServerOptions options, PrefillEngine engine, MetricsRegistry* registry);
  /// Shuts down.
  ~PrefillServer();
  PrefillServer(const PrefillServer&) = delete;
  PrefillServer& operator=(const PrefillServer&) = delete;

  /// Listens, then starts the step thread and its experts; ready when it returns OK. Once.
  Status Start(PrefillStepLoop::MakeExperts make_experts);
  /// The experts that live in this process, for Start. The weights must have all of them.
  PrefillStepLoop::MakeExperts LocalBackend() const;
  int port() const { return server_.port(); }
  /// Not ready any more, refuses new calls, waits up to `limit` for those that run. False when some still do.
  bool Drain(Duration limit);
  /// Cancels what runs and ends all threads. Idempotent.
  void Shutdown();

  const BlockPools& pools() const { return pools_; }
  const v1::Compat& compat() const { return description_.compat(); }

 private:
  rpc::Task<void> WatchStepThread();

  const PrefillServerOptions options_;
  const PrefillEngine engine_;
  MetricsRegistry* registry_;
  PrefillMetrics metrics_;
  PrefixCacheMetrics prefix_metrics_;
  BlockPools pools_;
  Model model_;
  const std::unique_ptr<PrefixStore> prefixes_;  // null when off; the step thread's
  const SteadyClock clock_;
  PrefillStepLoop step_;
  v1::Description description_;
  rpc::HealthState health_;
  int collector_ = 0;
  // These outlive the server, which they register with.
  std::unique_ptr<PrefillService> service_;
  std::unique_ptr<AssetsService> assets_;
  std::unique_ptr<rpc::HealthService> health_service_;
  rpc::Server server_;
  rpc::Loop* control_;
  bool shut_down_ = false;
};

}  // namespace cachalot
