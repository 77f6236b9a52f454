// cachalot-decode: holds the KV of running sequences and streams their tokens to routers.

#include "common/base/address.h"
#include "common/worker/start_worker.h"
#include "decode_worker/config.h"

namespace cachalot {
namespace {

Status Serve(RoleProcess& process, const DecodeConfig& config) {
  const WorkerConfig& worker = config.worker;
  ASSIGN_OR_RETURN(const auto loaded, LoadWorker(worker));
  DecodeServerOptions options = config.ServerOptions();
  options.assets = loaded->assets;
  const SteadyClock clock;
  DecodeServer server(loaded->weights, *loaded->kernels, clock, loaded->registry, options);
  RETURN_IF_ERROR(server.Start(
      worker.local_experts()
          ? server.LocalBackend()
          : ExpertsElsewhere(worker, server.compat(), loaded->weights->config,
                             {config.server.decode.max_batch, "--max-batch"}, process)));
  process.Ready(BoundAddress(worker.listen, server.port()));
  process.WaitForStop();
  server.Drain(worker.drain_limit);
  server.Stop();
  return OkStatus();
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) {
  using namespace cachalot;
  RoleProcess process({.role = "decode", .poll_strategy = PollStrategy::kPoll});
  DecodeConfig config;
  ConfigSchema schema("cachalot-decode", "Holds the KV of running sequences and streams their tokens to routers.");
  AddFlags(schema, &config);
  return RunRole(process, schema, config.worker.role, WordsOf(argc, argv), [&] { return Serve(process, config); });
}
