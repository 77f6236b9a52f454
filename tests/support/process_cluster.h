#pragma once
// A cluster of real role processes on loopback, each reachable by its number.

#include <memory>
#include <string>
#include <vector>

#include "cachalot/v1/cluster.pb.h"
#include "common/base/status.h"
#include "common/process/child_process.h"

namespace cachalot::testing {

struct ClusterOptions {
  std::string model;
  int prefill = 1, decode = 1, expert_shards = 2;  // 0 shards: experts inside the workers
  bool debug_logits = false;
  bool own_addresses =
      false;  // of the workers, so that they can be restarted there; one such cluster a process
  std::string mode = "exact";
  std::vector<std::string> prefill_flags, decode_flags, router_flags;
};

class ProcessCluster {
 public:
  struct Member {
    std::unique_ptr<ChildProcess> process;
    std::string address;
    std::vector<std::string> argv;
    std::string metrics;  // of a router: where it serves them
  };

  static StatusOr<std::unique_ptr<ProcessCluster>> Start(const ClusterOptions& options);

  const std::string& router() const { return router_.address; }
  Member& router_member() { return router_; }
  Member& prefill(size_t i) { return prefill_[i]; }
  Member& decode(size_t i) { return decode_[i]; }
  Member& expert(size_t i) { return experts_[i]; }

  /// One more router of the same workers; its address.
  StatusOr<std::string> AddRouter();

  /// A new life of a worker at its own address, from the thread that started the cluster: the old one, if it
  /// runs, is killed. FAILED_PRECONDITION without ClusterOptions::own_addresses.
  Status Restart(Member& member);

  /// What a worker says about itself.
  static StatusOr<v1::Description> Describe(const std::string& address);

  /// Until no live prefill or decode worker holds a block, a lease or a job, and no live router a request; else says
  /// who holds what.
  Status WaitNothingHeld(Duration at_most);

 private:
  StatusOr<Member> Spawn(std::vector<std::string> argv);
  /// With metrics, at an address of its own if `argv` names none.
  StatusOr<Member> SpawnRouter(std::vector<std::string> argv);
  /// `own_host`: the first one's of OwnAddress; 0: each takes a free port.
  Status SpawnGroup(std::vector<Member>& group, int count, const std::vector<std::string>& argv,
                    int own_host = 0);

  std::vector<Member> experts_, prefill_, decode_;
  Member router_;
  std::vector<Member> more_routers_;
};

}  // namespace cachalot::testing
