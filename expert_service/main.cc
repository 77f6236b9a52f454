// cachalot-expert: one shard of the routed experts as a service.

#include <cstdio>

#include "common/base/log.h"
#include "common/config/schema.h"
#include "common/metrics/server.h"
#include "common/process/role_main.h"
#include "expert_service/service.h"

namespace cachalot {
namespace {

constexpr Duration kStopGrace = std::chrono::seconds(5);

struct Config {
  ExpertServiceConfig service;
  std::string metrics_listen, log_level = "info";
  bool die_with_parent = false;
};

ConfigSchema SchemaOf(Config* config) {
  ExpertServiceConfig& service = config->service;
  ConfigSchema schema("cachalot-expert",
                      "Serves one shard of the routed experts of a DeepSeek-V4 checkpoint.");
  schema.Add("listen", &service.listen, "host:port (port 0: a free one) or unix:path to listen on");
  schema.Add("metrics-listen", &config->metrics_listen, "host:port of the Prometheus endpoint; empty: none");
  schema.Add("model", &service.model, "the checkpoint's directory", NotEmpty());
  schema.Add("shard", &service.shard, "i/N: the i-th of N equal shards; N is 1, 2, 4 or 8");
  schema.Add("kernels", &service.kernels, "back end of the arithmetic", OneOf({"auto", "cpu", "ref"}));
  schema.Add("mode", &service.mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("threads", &service.threads, "threads that compute; 0: one a core", Range(0, 1024));
  schema.Add("batch-wait-us", &service.batch_wait_us,
             "how long a call may wait for calls of other connected callers", Range(0, 1000000));
  schema.Add("spin-us", &service.spin_us,
             "how long the step thread polls before it sleeps; only with a core to itself",
             Range(0, 1000000));
  schema.Add("max-call-rows", &service.max_call_rows, "token rows that one call may bring",
             Range(1, 1 << 20));
  schema.Add("log-level", &config->log_level, "what is logged", OneOf({"debug", "info", "warning", "error"}));
  schema.Add("die-with-parent", &config->die_with_parent, "end when the process that started this one ends");
  schema.Require("model");
  return schema;
}

Status Run(RoleProcess& process, int argc, char** argv) {
  Config config;
  ConfigSchema schema = SchemaOf(&config);
  ASSIGN_OR_RETURN(const ParsedArgs parsed, schema.Parse(argc, argv));
  if (parsed.help) {
    std::puts(schema.Help().c_str());
    return OkStatus();
  }
  if (!parsed.positional.empty()) return InvalidArgument("unexpected argument " + parsed.positional[0]);
  RETURN_IF_ERROR(process.Init(config.log_level));
  if (config.die_with_parent) RETURN_IF_ERROR(process.DieWithParent());

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
  cachalot::RoleProcess process({.role = "expert", .poll_strategy = cachalot::PollStrategy::kPoll});
  return process.Exit(cachalot::Run(process, argc, argv));
}
