// cachalot-expert: one shard of the routed experts as a service.

#include "common/metrics/server.h"
#include "expert_service/config.h"

namespace cachalot {
namespace {

constexpr Duration kStopGrace = std::chrono::seconds(5);

Status Serve(RoleProcess& process, const ExpertConfig& config) {
  MetricsRegistry metrics;
  ASSIGN_OR_RETURN(const auto metrics_server, MetricsServer::Start(config.metrics_listen, metrics));
  ASSIGN_OR_RETURN(const auto service, ExpertService::Start(config.service, &metrics));
  process.Ready(service->address());
  process.WaitForStop();
  service->Stop(kStopGrace);
  return OkStatus();
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) {
  using namespace cachalot;
  RoleProcess process({.role = "expert", .poll_strategy = PollStrategy::kPoll});
  ExpertConfig config;
  ConfigSchema schema("cachalot-expert", "Serves one shard of the routed experts of a DeepSeek-V4 checkpoint.");
  AddFlags(schema, &config);
  return RunRole(process, schema, config.role, WordsOf(argc, argv), [&] { return Serve(process, config); });
}
