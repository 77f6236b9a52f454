// `cachalot up`: a whole cluster of real processes on this machine.

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <thread>

#include "client/cli/commands.h"
#include "common/base/log.h"
#include "common/base/standard_output.h"
#include "common/process/child_process.h"
#include "common/process/restart_pace.h"
#include "common/process/run_role.h"
#include "decode_worker/config.h"
#include "expert_service/config.h"
#include "prefill_worker/config.h"
#include "router/config.h"

namespace cachalot::cli {
namespace {

constexpr Duration kStopGrace = std::chrono::seconds(12);
constexpr Duration kAfterDrain = std::chrono::seconds(2);  // for a role to end when it has drained
constexpr Duration kLookForStop = std::chrono::milliseconds(20), kLookForEnded = std::chrono::milliseconds(100);

using Flags = std::map<std::string, std::string>;

/// Flags of one role, given to `cachalot up` under its prefix.
template <typename RoleConfig>
struct Forwarded {
  explicit Forwarded(const char* program) : schema(program, "") { AddFlags(schema, &config); }
  RoleConfig config;
  ConfigSchema schema;
  Flags given;
};

struct Config {
  std::string model, mode = "exact", kernels = "auto";
  int prefill_workers = 1, decode_workers = 1, expert_shards = 2, grpc_port = 0, threads = 0;
  bool debug_logits = false, restart = true;
  Duration start_timeout = std::chrono::seconds(120);
  RoleFlags role;
  Forwarded<RouterConfig> router{"cachalot-router"};
  Forwarded<PrefillConfig> prefill{"cachalot-prefill"};
  Forwarded<DecodeConfig> decode{"cachalot-decode"};
  Forwarded<ExpertConfig> expert{"cachalot-expert"};
};

using Child = std::unique_ptr<ChildProcess>;

struct Member {
  std::string binary;
  Flags flags;
  Child child;
  std::string address;
  RestartPace pace;
  TimePoint started;
  std::optional<TimePoint> restart;  // it has ended
};

/// Starts the roles in order of need, each wave at once, starts again whoever ends, and stops them in reverse.
class Cluster {
 public:
  Cluster(const Config& config, const RoleProcess& process)
      : config_(config),
        process_(process),
        folder_(std::filesystem::read_symlink("/proc/self/exe").parent_path()),
        deadline_(std::chrono::steady_clock::now() + config.start_timeout) {
    const int workers = config.prefill_workers + config.decode_workers + config.expert_shards;
    const int cores = std::max(1u, std::thread::hardware_concurrency());
    threads_ = config.threads > 0 ? config.threads : std::max(1, cores / workers);
  }

  /// CANCELLED when the process is asked to stop meanwhile.
  Status Start() {
    std::string experts = "local";
    if (config_.expert_shards > 0) {
      for (int i = 0; i < config_.expert_shards; ++i) {
        Flags flags = WorkerFlags();
        flags["shard"] = std::to_string(i) + "/" + std::to_string(config_.expert_shards);
        RETURN_IF_ERROR(Add(experts_, "cachalot-expert", flags, config_.expert.given));
      }
      ASSIGN_OR_RETURN(experts, Ready(experts_));
    }
    Flags dense = WorkerFlags();
    dense["experts"] = experts;
    if (config_.debug_logits) dense["debug-logits"] = "true";
    for (int i = 0; i < config_.prefill_workers; ++i)
      RETURN_IF_ERROR(Add(prefill_, "cachalot-prefill", dense, config_.prefill.given));
    for (int i = 0; i < config_.decode_workers; ++i)
      RETURN_IF_ERROR(Add(decode_, "cachalot-decode", dense, config_.decode.given));
    Flags router = {{"listen", "127.0.0.1:" + std::to_string(config_.grpc_port)},
                    {"log-level", config_.role.log_level}};
    ASSIGN_OR_RETURN(router["prefill"], Ready(prefill_));
    ASSIGN_OR_RETURN(router["decode"], Ready(decode_));
    if (config_.debug_logits) router["debug-logits"] = "true";
    RETURN_IF_ERROR(Add(router_, "cachalot-router", router, config_.router.given));
    ASSIGN_OR_RETURN(address_, Ready(router_));
    return OkStatus();
  }

  /// HOST:PORT PID,PID,...: the router, then prefill, decode and expert processes in order.
  std::string Line() const {
    std::string pids;
    for (const auto* group : {&router_, &prefill_, &decode_, &experts_})
      for (const Member& member : *group) pids += (pids.empty() ? "" : ",") + std::to_string(member.child->pid());
    return address_ + " " + pids;
  }

  /// A role that has ended starts again at its address, where the others look for it.
  void Supervise(TimePoint now) {
    for (auto* group : {&router_, &prefill_, &decode_, &experts_})
      for (Member& member : *group) {
        if (!member.restart && !member.child->Running()) Ended(member, now);
        if (member.restart && now >= *member.restart) Restart(member, now);
      }
  }

  void Stop() {
    StopGroup(router_, config_.router.config.drain);
    StopGroup(prefill_, config_.prefill.config.worker.drain_limit);
    StopGroup(decode_, config_.decode.config.worker.drain_limit);
    StopGroup(experts_, Duration::zero());
  }

 private:
  static void StopGroup(std::vector<Member>& group, Duration drain) {
    for (Member& member : group) member.child->Signal(SIGTERM);
    const TimePoint end = std::chrono::steady_clock::now() + std::max(kStopGrace, drain + kAfterDrain);
    for (Member& member : group)
      if (!member.child->Wait(end).ok()) member.child->Kill();
  }

  static void Ended(Member& member, TimePoint now) {
    const StatusOr<ChildExit> exit = member.child->Wait(now);
    const Duration pause = member.pace.Ended(now - member.started);
    LogWarning(member.binary + " at " + member.address + " (pid " + std::to_string(member.child->pid()) + ") " +
               (exit.ok() ? exit->ToString() : StatusMessage(exit.status())) + ": it starts again in " +
               std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(pause).count()) + " ms");
    member.restart = now + pause;
  }

  void Restart(Member& member, TimePoint now) {
    member.restart.reset();
    member.started = now;
    member.flags["listen"] = member.address;
    StatusOr<Child> child = Spawn(member.binary, member.flags);
    if (!child.ok()) {
      LogError(StatusMessage(child.status()));
      member.restart = now + member.pace.Ended(Duration::zero());
      return;
    }
    member.child = std::move(*child);
    LogInfo(member.binary + " starts again at " + member.address + " as pid " + std::to_string(member.child->pid()));
  }

  Flags WorkerFlags() const {
    return {{"listen", "127.0.0.1:0"},
            {"model", config_.model},
            {"mode", config_.mode},
            {"kernels", config_.kernels},
            {"threads", std::to_string(threads_)},
            {"log-level", config_.role.log_level}};
  }

  StatusOr<Child> Spawn(const std::string& binary, const Flags& flags) const {
    std::vector<std::string> argv = {(folder_ / binary).string()};
    for (const auto& [name, value] : flags) argv.push_back("--" + name + "=" + value);
    argv.push_back("--die-with-parent");
    return ChildProcess::Spawn({.argv = argv});
  }

  /// `given` by the user wins.
  Status Add(std::vector<Member>& group, const std::string& binary, const Flags& flags, const Flags& given) {
    Member member;
    member.binary = binary;
    member.flags = given;
    member.flags.insert(flags.begin(), flags.end());
    ASSIGN_OR_RETURN(member.child, Spawn(binary, member.flags));
    member.started = std::chrono::steady_clock::now();
    group.push_back(std::move(member));
    return OkStatus();
  }

  /// The addresses of a group, comma-separated, once all serve.
  StatusOr<std::string> Ready(std::vector<Member>& group) {
    std::string addresses;
    for (Member& member : group) {
      ASSIGN_OR_RETURN(member.address, ReadyOrStopped(*member.child));
      addresses += (addresses.empty() ? "" : ",") + member.address;
    }
    return addresses;
  }

  StatusOr<std::string> ReadyOrStopped(ChildProcess& child) {
    for (;;) {
      const TimePoint look = std::min(deadline_, std::chrono::steady_clock::now() + kLookForStop);
      StatusOr<std::string> address = child.WaitReady(look);
      if (process_.stopping()) return Cancelled("stopped before all roles were ready");
      if (look == deadline_ || address.status().code() != StatusCode::kDeadlineExceeded) return address;
    }
  }

  const Config& config_;
  const RoleProcess& process_;
  const std::filesystem::path folder_;
  const TimePoint deadline_;
  int threads_ = 1;
  std::vector<Member> experts_, prefill_, decode_, router_;
  std::string address_;
};

Status Up(RoleProcess& process, const Config& config) {
  Cluster cluster(config, process);
  Status status = cluster.Start();
  if (status.ok()) {
    status = WriteStdout("ready " + cluster.Line() + "\n");
    if (status.ok() && !config.restart) process.WaitForStop();
    while (status.ok() && !process.WaitForStop(std::chrono::steady_clock::now() + kLookForEnded))
      cluster.Supervise(std::chrono::steady_clock::now());
  }
  cluster.Stop();
  return process.stopping() ? OkStatus() : status;
}

/// Processes of one kind cannot share one port of metrics.
Status CheckMetrics(const std::string& role, const Flags& given, int processes) {
  const auto listen = given.find("metrics-listen");
  if (processes <= 1 || listen == given.end() || listen->second.empty() || listen->second.ends_with(":0"))
    return OkStatus();
  return InvalidArgument("--" + role + "-metrics-listen: " + std::to_string(processes) +
                         " processes cannot share the port of " + listen->second + "; give port 0");
}

Status CheckRoles(const Config& config) {
  RETURN_IF_ERROR(CheckMetrics("prefill", config.prefill.given, config.prefill_workers));
  RETURN_IF_ERROR(CheckMetrics("decode", config.decode.given, config.decode_workers));
  RETURN_IF_ERROR(CheckMetrics("expert", config.expert.given, config.expert_shards));
  if (config.expert_shards == 0 && !config.expert.given.empty())
    return InvalidArgument("--expert-" + config.expert.given.begin()->first +
                           ": there are no expert services with --expert-shards 0");
  return OkStatus();
}

void ForwardFlags(ConfigSchema& schema, Config* config) {
  Flags all = {{"config", "put ROLE-FLAG: VALUE into the file of --config"},
               {"check-config", "use --check-config, which looks at the flags of all roles"},
               {"die-with-parent", "all roles end with cachalot up"},
               {"model", "all roles need the same: use --model"}};
  Flags router = all;
  router["listen"] = "it listens on loopback: use --grpc-port for its port";
  router["prefill"] = router["decode"] = "cachalot up starts the workers: use --prefill N and --decode N";
  schema.Forward("router", config->router.schema, &config->router.given, router);
  Flags worker = all;
  worker["listen"] = "cachalot up finds a free port for each";
  worker["mode"] = "all roles need the same: use --mode";
  worker["kernels"] = "all roles need the same: use --kernels";
  worker["experts"] = worker["shard"] = "cachalot up starts the expert services: use --expert-shards N";
  schema.Forward("prefill", config->prefill.schema, &config->prefill.given, worker);
  schema.Forward("decode", config->decode.schema, &config->decode.given, worker);
  schema.Forward("expert", config->expert.schema, &config->expert.given, worker);
  schema.Check([config] { return CheckRoles(*config); });
}

}  // namespace

int UpCommand(const std::vector<std::string>& words) {
  RoleProcess process({.role = "up"});
  Config config;
  ConfigSchema schema("cachalot up",
                      "Starts router, prefill, decode and expert processes on loopback. Prints one line, ready HOST:PORT "
                      "PID,PID,... (router, prefill, decode, experts), when the router serves. Starts again what ends. Stops all on SIGINT or SIGTERM.");
  schema.Add("model", &config.model, "checkpoint directory", NotEmpty());
  schema.Require("model");
  schema.Add("prefill", &config.prefill_workers, "prefill workers", Range(1, 64));
  schema.Add("decode", &config.decode_workers, "decode workers", Range(1, 64));
  schema.Add("expert-shards", &config.expert_shards, "expert services; 0: experts inside the workers",
             Validator<int>([](const int& shards) {
               return shards == 0 || shards == 1 || shards == 2 || shards == 4 || shards == 8
                          ? OkStatus()
                          : InvalidArgument("wanted 0, 1, 2, 4 or 8 (shards divide the 8 reduction groups), got " +
                                            std::to_string(shards));
             }));
  schema.Add("grpc-port", &config.grpc_port, "port of the router; 0: any free one", Range(0, 65535));
  schema.Add("mode", &config.mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("kernels", &config.kernels, "back end", OneOf({"auto", "cpu", "ref"}));
  schema.Add("threads", &config.threads, "compute threads of each worker; 0: the cores divided by the workers",
             Range(0, 256));
  schema.Add("debug-logits", &config.debug_logits, "serve the Debug service through all roles");
  schema.AddMilliseconds("start-timeout-ms", &config.start_timeout, "until everything must serve");
  schema.Add("restart", &config.restart, "start a role again that ends, at its address");
  AddFlags(schema, &config.role);
  ForwardFlags(schema, &config);
  return RunRole(process, schema, config.role, words, [&] { return Up(process, config); });
}

}  // namespace cachalot::cli
