#include "tests/support/process_cluster.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "tests/support/metrics.h"
#include "tests/support/own_address.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

constexpr Duration kStart = std::chrono::seconds(60) * kSlowdown;
constexpr int kPrefillHost = 101, kDecodeHost = 151;  // of OwnAddress, the first of their kind
constexpr int kRouterHost = 210, kRouterHosts = 40;   // where routers serve their metrics

/// Clusters of a test may live side by side.
std::string NextRouterMetrics() {
  static std::atomic<int> next = 0;
  return OwnAddress(kRouterHost + next++ % kRouterHosts);
}

std::string Join(const std::vector<ProcessCluster::Member>& members) {
  std::string text;
  for (const auto& member : members) text += (text.empty() ? "" : ",") + member.address;
  return text;
}

}  // namespace

StatusOr<ProcessCluster::Member> ProcessCluster::Spawn(std::vector<std::string> argv) {
  argv[0] = CACHALOT_BINARY_DIR "/" + argv[0];
  argv.insert(argv.end(), {"--die-with-parent", "--log-level", "warning"});
  Member member;
  ASSIGN_OR_RETURN(member.process, ChildProcess::Spawn({.argv = argv}));
  member.argv = std::move(argv);
  return member;
}

StatusOr<ProcessCluster::Member> ProcessCluster::SpawnRouter(std::vector<std::string> argv) {
  constexpr char kFlag[] = "--metrics-listen";
  if (std::find(argv.begin(), argv.end(), kFlag) == argv.end())
    argv.insert(argv.end(), {kFlag, NextRouterMetrics()});
  std::string metrics = *(std::find(argv.begin(), argv.end(), kFlag) + 1);
  ASSIGN_OR_RETURN(Member member, Spawn(std::move(argv)));
  member.metrics = std::move(metrics);
  return member;
}

Status ProcessCluster::Restart(Member& member) {
  const TimePoint deadline = std::chrono::steady_clock::now() + kStart;
  if (std::find(member.argv.begin(), member.argv.end(), member.address) == member.argv.end())
    return FailedPrecondition("restart of " + member.process->name() + ": others may have its port by then");
  member.process->Kill();
  RETURN_IF_ERROR(member.process->Wait(deadline).status());
  ASSIGN_OR_RETURN(member.process, ChildProcess::Spawn({.argv = member.argv}));
  return member.process->WaitReady(deadline).status();
}

Status ProcessCluster::SpawnGroup(std::vector<Member>& group, int count, const std::vector<std::string>& argv,
                                  int own_host) {
  for (int i = 0; i < count; ++i) {
    std::vector<std::string> one = argv;
    one.insert(one.end(), {"--listen", own_host ? OwnAddress(own_host + i) : "127.0.0.1:0"});
    ASSIGN_OR_RETURN(Member member, Spawn(std::move(one)));
    group.push_back(std::move(member));
  }
  return OkStatus();
}

StatusOr<std::unique_ptr<ProcessCluster>> ProcessCluster::Start(const ClusterOptions& options) {
  std::unique_ptr<ProcessCluster> cluster(new ProcessCluster);
  const TimePoint deadline = std::chrono::steady_clock::now() + kStart;
  const auto ready = [&](std::vector<Member>& group) -> Status {
    for (Member& member : group) {
      ASSIGN_OR_RETURN(member.address, member.process->WaitReady(deadline));
    }
    return OkStatus();
  };
  const std::vector<std::string> common = {"--model", options.model, "--mode", options.mode};
  const auto with = [&](const char* binary, std::vector<std::string> more) {
    std::vector<std::string> argv = {binary};
    argv.insert(argv.end(), common.begin(), common.end());
    argv.insert(argv.end(), more.begin(), more.end());
    return argv;
  };
  for (int i = 0; i < options.expert_shards; ++i)
    RETURN_IF_ERROR(cluster->SpawnGroup(
        cluster->experts_, 1,
        with("cachalot-expert", {"--shard", std::to_string(i) + "/" + std::to_string(options.expert_shards)})));
  RETURN_IF_ERROR(ready(cluster->experts_));
  std::vector<std::string> dense = {"--experts", options.expert_shards ? Join(cluster->experts_) : "local"};
  if (options.debug_logits) dense.push_back("--debug-logits");
  std::vector<std::string> prefill = dense, decode = dense;
  prefill.insert(prefill.end(), options.prefill_flags.begin(), options.prefill_flags.end());
  decode.insert(decode.end(), options.decode_flags.begin(), options.decode_flags.end());
  const bool own = options.own_addresses;
  RETURN_IF_ERROR(cluster->SpawnGroup(cluster->prefill_, options.prefill, with("cachalot-prefill", prefill),
                                      own ? kPrefillHost : 0));
  RETURN_IF_ERROR(cluster->SpawnGroup(cluster->decode_, options.decode, with("cachalot-decode", decode),
                                      own ? kDecodeHost : 0));
  RETURN_IF_ERROR(ready(cluster->prefill_));
  RETURN_IF_ERROR(ready(cluster->decode_));
  std::vector<std::string> router = {"cachalot-router", "--listen", "127.0.0.1:0", "--prefill",
                                     Join(cluster->prefill_), "--decode", Join(cluster->decode_)};
  if (options.debug_logits) router.push_back("--debug-logits");
  router.insert(router.end(), options.router_flags.begin(), options.router_flags.end());
  ASSIGN_OR_RETURN(cluster->router_, cluster->SpawnRouter(router));
  ASSIGN_OR_RETURN(cluster->router_.address, cluster->router_.process->WaitReady(deadline));
  return cluster;
}

StatusOr<std::string> ProcessCluster::AddRouter() {
  ASSIGN_OR_RETURN(Member member, SpawnRouter({"cachalot-router", "--listen", "127.0.0.1:0", "--prefill",
                                               Join(prefill_), "--decode", Join(decode_)}));
  ASSIGN_OR_RETURN(member.address, member.process->WaitReady(std::chrono::steady_clock::now() + kStart));
  more_routers_.push_back(std::move(member));
  return more_routers_.back().address;
}

StatusOr<v1::Description> ProcessCluster::Describe(const std::string& address) {
  const auto stub =
      v1::Cluster::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::Description description;
  const grpc::Status status = stub->Describe(&context, {}, &description);
  if (!status.ok()) return MakeStatus(static_cast<StatusCode>(status.error_code()), status.error_message());
  return description;
}

Status ProcessCluster::WaitNothingHeld(Duration at_most) {
  const TimePoint end = std::chrono::steady_clock::now() + at_most;
  std::string held;
  do {
    held.clear();
    for (auto* group : {&prefill_, &decode_})
      for (Member& member : *group) {
        if (!member.process->Running()) continue;
        ASSIGN_OR_RETURN(const v1::Description description, Describe(member.address));
        const v1::Load& load = description.load();
        if (load.used_kv_blocks() || load.leases() || load.running_sequences())
          held += member.process->name() + " holds " + std::to_string(load.used_kv_blocks()) + " blocks, " +
                  std::to_string(load.leases()) + " leases, " + std::to_string(load.running_sequences()) +
                  " sequences. ";
      }
    const auto ask_router = [&held](Member& router) {
      if (!router.process->Running()) return;
      const double running = Metric(router.metrics, "cachalot_router_running_requests");
      if (running < 0) held += "The router at " + router.address + " does not say what it holds. ";
      if (running > 0) held += "The router at " + router.address + " holds " + std::to_string(running) + " requests. ";
    };
    ask_router(router_);
    for (Member& router : more_routers_) ask_router(router);
    if (held.empty()) return OkStatus();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // between looks at other processes
  } while (std::chrono::steady_clock::now() < end);
  return DeadlineExceeded("still held: " + held);
}

}  // namespace cachalot::testing
