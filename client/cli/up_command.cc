// `cachalot up`: a whole cluster of real processes on this machine.

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "client/cli/commands.h"
#include "common/base/log.h"
#include "common/config/schema.h"
#include "common/process/child_process.h"
#include "common/process/role_main.h"

namespace cachalot::cli {
namespace {

constexpr Duration kStopGrace = std::chrono::seconds(12);  // a role drains for up to 10 s

struct Config {
  std::string model, mode = "exact", kernels = "auto", log_level = "info";
  int prefill = 1, decode = 1, expert_shards = 2, grpc_port = 0, threads = 0;
  bool debug_logits = false;
  Duration start_timeout = std::chrono::seconds(120);
};

using Child = std::unique_ptr<ChildProcess>;

/// Starts the roles in order of need, each wave at once, and stops them in reverse.
class Cluster {
 public:
  explicit Cluster(const Config& config)
      : config_(config), folder_(std::filesystem::read_symlink("/proc/self/exe").parent_path()),
        deadline_(std::chrono::steady_clock::now() + config.start_timeout) {
    const int workers = config.prefill + config.decode + config.expert_shards;
    const int cores = std::max(1u, std::thread::hardware_concurrency());
    threads_ = config.threads > 0 ? config.threads : std::max(1, cores / workers);
  }

  Status Start() {
    std::string experts = "local";
    if (config_.expert_shards > 0) {
      for (int i = 0; i < config_.expert_shards; ++i)
        RETURN_IF_ERROR(Spawn(experts_, WorkerArguments("cachalot-expert"),
                              {"--shard", std::to_string(i) + "/" + std::to_string(config_.expert_shards)}));
      ASSIGN_OR_RETURN(experts, Ready(experts_));
    }
    for (int i = 0; i < config_.prefill; ++i)
      RETURN_IF_ERROR(Spawn(prefill_, WorkerArguments("cachalot-prefill"), DenseArguments(experts)));
    for (int i = 0; i < config_.decode; ++i)
      RETURN_IF_ERROR(Spawn(decode_, WorkerArguments("cachalot-decode"), DenseArguments(experts)));
    ASSIGN_OR_RETURN(const std::string prefill, Ready(prefill_));
    ASSIGN_OR_RETURN(const std::string decode, Ready(decode_));
    std::vector<std::string> router = {"--listen", "127.0.0.1:" + std::to_string(config_.grpc_port),
                                       "--prefill", prefill, "--decode", decode, "--model", config_.model};
    if (config_.debug_logits) router.push_back("--debug-logits");
    RETURN_IF_ERROR(Spawn(router_, {Binary("cachalot-router"), "--log-level", config_.log_level}, router));
    ASSIGN_OR_RETURN(address_, Ready(router_));
    return OkStatus();
  }

  /// HOST:PORT PID,PID,...: the router, then prefill, decode and expert processes in order.
  std::string Line() const {
    std::string pids;
    for (const auto* group : {&router_, &prefill_, &decode_, &experts_})
      for (const Child& child : *group) pids += (pids.empty() ? "" : ",") + std::to_string(child->pid());
    return address_ + " " + pids;
  }

  void Stop() {
    for (auto* group : {&router_, &prefill_, &decode_, &experts_}) {
      for (Child& child : *group) child->Signal(SIGTERM);
      const TimePoint end = std::chrono::steady_clock::now() + kStopGrace;
      for (Child& child : *group)
        if (!child->Wait(end).ok()) child->Kill();
    }
  }

 private:
  std::string Binary(const std::string& name) const { return (folder_ / name).string(); }

  std::vector<std::string> WorkerArguments(const std::string& name) const {
    return {Binary(name),  "--listen",  "127.0.0.1:0",            "--model",     config_.model,
            "--mode",      config_.mode, "--kernels",             config_.kernels, "--threads",
            std::to_string(threads_),   "--log-level", config_.log_level};
  }
  std::vector<std::string> DenseArguments(const std::string& experts) const {
    std::vector<std::string> arguments = {"--experts", experts};
    if (config_.debug_logits) arguments.push_back("--debug-logits");
    return arguments;
  }

  Status Spawn(std::vector<Child>& group, std::vector<std::string> argv, const std::vector<std::string>& more) {
    argv.insert(argv.end(), more.begin(), more.end());
    argv.push_back("--die-with-parent");
    ASSIGN_OR_RETURN(Child child, ChildProcess::Spawn({.argv = argv}));
    group.push_back(std::move(child));
    return OkStatus();
  }

  /// The addresses of a group, comma-separated, once all serve.
  StatusOr<std::string> Ready(const std::vector<Child>& group) {
    std::string addresses;
    for (const Child& child : group) {
      ASSIGN_OR_RETURN(const std::string address, child->WaitReady(deadline_));
      addresses += (addresses.empty() ? "" : ",") + address;
    }
    return addresses;
  }

  const Config& config_;
  const std::filesystem::path folder_;
  const TimePoint deadline_;
  int threads_ = 1;
  std::vector<Child> experts_, prefill_, decode_, router_;
  std::string address_;
};

Status Up(RoleProcess& process, const Config& config) {
  RETURN_IF_ERROR(process.Init(config.log_level));
  Cluster cluster(config);
  const Status started = cluster.Start();
  if (started.ok() && !process.stopping()) {
    std::printf("ready %s\n", cluster.Line().c_str());
    std::fflush(stdout);
    process.WaitForStop();
  }
  cluster.Stop();
  return process.stopping() ? OkStatus() : started;
}

}  // namespace

int UpCommand(const std::vector<std::string>& words) {
  RoleProcess process({.role = "up"});
  Config config;
  ConfigSchema schema("cachalot up",
                      "Starts router, prefill, decode and expert processes on loopback. Prints one line, ready HOST:PORT "
                      "PID,PID,... (router, prefill, decode, experts), when the router serves. Stops all on SIGINT or SIGTERM.");
  schema.Add("model", &config.model, "checkpoint directory", NotEmpty());
  schema.Require("model");
  schema.Add("prefill", &config.prefill, "prefill workers", Range(1, 64));
  schema.Add("decode", &config.decode, "decode workers", Range(1, 64));
  schema.Add("expert-shards", &config.expert_shards, "expert services; 0: experts inside the workers",
             Validator<int>([](const int& shards) {
               return shards == 0 || shards == 1 || shards == 2 || shards == 4 || shards == 8
                          ? OkStatus()
                          : InvalidArgument("wanted 0, 1, 2, 4 or 8 (shards divide the 8 reduction groups)");
             }));
  schema.Add("grpc-port", &config.grpc_port, "port of the router; 0: any free one", Range(0, 65535));
  schema.Add("mode", &config.mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("kernels", &config.kernels, "back end", OneOf({"auto", "cpu", "ref"}));
  schema.Add("threads", &config.threads, "compute threads of each worker; 0: the cores divided by the workers",
             Range(0, 256));
  schema.Add("debug-logits", &config.debug_logits, "serve the Debug service through all roles");
  schema.Add("log-level", &config.log_level, "debug, info, warning or error");
  schema.AddMilliseconds("start-timeout-ms", &config.start_timeout, "until everything must serve");
  const auto parsed = schema.Parse(words);
  if (!parsed.ok()) return Report("up", parsed.status());
  if (parsed->help) return std::puts(schema.Help().c_str()), 0;
  return Report("up", Up(process, config));
}

}  // namespace cachalot::cli
