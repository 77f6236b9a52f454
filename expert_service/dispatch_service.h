#pragma once
// The expert service on the wire: Dispatch on the step loop, Describe on the control loop, and the step
// thread.
//
//   step thread: poll the loop -> ExpertStep.Collect -> RunBatch when due -> poll ...
//
// The step thread computes, so its loop does not listen: new connections are taken by the control loop.

#include <atomic>
#include <set>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "cachalot/v1/expert.grpc.pb.h"
#include "common/base/time.h"
#include "common/rpc/server.h"
#include "common/transport/grpc_transport.h"
#include "expert_service/expert_step.h"

namespace cachalot {

class DispatchService {
 public:
  /// What Describe answers, but for the load. Role, epoch and shard must be set.
  DispatchService(rpc::Server* server, rpc::Loop* control, rpc::Loop* step_loop, ExpertStep* step,
                  v1::Description description);

  /// The step thread: returns when the step loop has been shut down (Server::Shutdown).
  void RunStepThread();

  /// Any thread: answers the calls that have arrived, then ends every stream and refuses new ones with
  /// UNAVAILABLE.
  void Drain();

  /// Any thread: when the step thread last came round. It comes round a few times a second even if idle.
  TimePoint last_turn() const { return TimePoint(Duration(last_turn_.load(std::memory_order_relaxed))); }

 private:
  rpc::Task<Status> Dispatch(rpc::ServerCall& call, rpc::RawServerStream& stream);
  rpc::Task<Status> Describe(rpc::ServerCall& call, const v1::DescribeRequest& request,
                             v1::Description* response);
  /// One turn without waiting; when to be back at the latest.
  TimePoint Turn();

  rpc::Loop* const step_loop_;
  ExpertStep* const step_;
  const v1::Description description_;
  const std::string epoch_;
  v1::Expert::WithRawMethod_Dispatch<v1::Expert::Service> expert_;
  v1::Cluster::AsyncService cluster_;
  std::set<GrpcServerChannel*> channels_;  // step thread
  std::atomic<bool> draining_{false};
  std::atomic<int64_t> callers_{0};
  std::atomic<int64_t> last_turn_;
};

}  // namespace cachalot
