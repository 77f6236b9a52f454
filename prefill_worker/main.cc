// cachalot-prefill: builds the KV of prompts and pushes it to decode workers.

#include "common/base/address.h"
#include "common/base/log.h"
#include "common/base/seconds_text.h"
#include "common/worker/start_worker.h"
#include "prefill_worker/config.h"

namespace cachalot {
namespace {

Status Serve(RoleProcess& process, const PrefillConfig& config) {
  const WorkerConfig& worker = config.worker;
  ASSIGN_OR_RETURN(const auto loaded, LoadWorker(worker));
  PrefillServerOptions options = config.ServerOptions();
  options.assets = loaded->assets;
  ThreadPool threads(worker.threads);
  PrefillServer server(std::move(options), {loaded->weights, loaded->kernels, &threads}, &loaded->registry);
  RETURN_IF_ERROR(server.Start(
      worker.local_experts()
          ? server.LocalBackend()
          : ExpertsElsewhere(worker, server.compat(), loaded->weights->config,
                             {config.server.max_chunk_tokens, "--max-chunk-tokens"}, process)));
  process.Ready(BoundAddress(worker.listen, server.port()));
  process.WaitForStop();
  if (!server.Drain(worker.drain_limit))
    LogWarning("calls still run after the drain limit of " + SecondsText(worker.drain_limit) +
               ": they are cancelled");
  server.Shutdown();
  return OkStatus();
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) {
  using namespace cachalot;
  RoleProcess process({.role = "prefill", .poll_strategy = PollStrategy::kPoll});
  PrefillConfig config;
  ConfigSchema schema("cachalot-prefill", "Builds the KV of prompts and pushes it to decode workers.");
  AddFlags(schema, &config);
  return RunRole(process, schema, config.worker.role, WordsOf(argc, argv), [&] { return Serve(process, config); });
}
