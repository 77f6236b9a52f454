#include "common/worker/start_worker.h"

#include "common/cluster/assets.h"
#include "common/kv/block_pool.h"
#include "common/model/forward.h"
#include "common/moe/connect_experts.h"

namespace cachalot {

StatusOr<std::unique_ptr<LoadedWorker>> LoadWorker(const WorkerConfig& config) {
  auto loaded = std::make_unique<LoadedWorker>();
  ASSIGN_OR_RETURN(loaded->kernels, kernels::SelectKernels(config.kernels, config.mode));
  ASSIGN_OR_RETURN(loaded->weights, ModelWeights::Load(config.model, config.local_experts()
                                                                         ? WeightSelection::All()
                                                                         : WeightSelection::DenseOnly()));
  const KvLayout layout(KvShapeOf(loaded->weights->config, loaded->kernels->mode));
  RETURN_IF_ERROR(CheckKvMemory(layout, config.max_sequences, config.kv_tokens));
  ASSIGN_OR_RETURN(loaded->assets, ReadModelAssets(config.model));
  ASSIGN_OR_RETURN(loaded->metrics_server, MetricsServer::Start(config.metrics_listen, loaded->registry));
  return loaded;
}

std::function<StatusOr<std::unique_ptr<ExpertBackend>>(rpc::Loop*)> ExpertsElsewhere(const WorkerConfig& config,
                                                                                     const v1::Compat& compat,
                                                                                     const ModelConfig& model,
                                                                                     StepRows step_rows,
                                                                                     const RoleProcess& process) {
  return [&config, &compat, &model, step_rows, &process](rpc::Loop* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    ConnectExpertsOptions options;
    options.give_up = [&process] { return process.stopping(); };
    options.dns_servers = config.dns_server;
    options.step_rows = step_rows.most;
    options.step_rows_flag = step_rows.flag;
    options.hidden = model.hidden_size;
    options.experts_per_row = model.num_experts_per_tok;
    ASSIGN_OR_RETURN(std::unique_ptr<ExpertBackend> experts,
                     ConnectExperts(config.experts, loop, compat, model.n_routed_experts, options));
    return experts;
  };
}

}  // namespace cachalot
