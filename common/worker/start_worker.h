#pragma once
// What prefill and decode workers load before they serve, and how they come to their experts.

#include <functional>
#include <memory>

#include "cachalot/v1/cluster.pb.h"
#include "common/base/status.h"
#include "common/kernels/kernels.h"
#include "common/metrics/registry.h"
#include "common/metrics/server.h"
#include "common/model/config.h"
#include "common/model/weights.h"
#include "common/moe/expert_backend.h"
#include "common/rpc/loop.h"
#include "common/worker/worker_config.h"

namespace cachalot {

struct LoadedWorker {
  const kernels::KernelTable* kernels = nullptr;
  std::shared_ptr<const ModelWeights> weights;
  v1::GetModelAssetsResponse assets;
  MetricsRegistry registry;
  std::unique_ptr<MetricsServer> metrics_server;
};

/// The weights of its role, and the metrics' endpoint. Outlives the server.
StatusOr<std::unique_ptr<LoadedWorker>> LoadWorker(const WorkerConfig& config);

/// The most token rows that a step of a worker has, and the flag that says so.
struct StepRows {
  int64_t most = 0;
  std::string flag;
};

/// The expert services of `config`, for a server that has `compat` and `model`; given up when the process is to stop.
std::function<StatusOr<std::unique_ptr<ExpertBackend>>(rpc::Loop*)> ExpertsElsewhere(const WorkerConfig& config,
                                                                                     const v1::Compat& compat,
                                                                                     const ModelConfig& model,
                                                                                     StepRows step_rows,
                                                                                     const RoleProcess& process);

}  // namespace cachalot
