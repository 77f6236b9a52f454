#pragma once
// A prefill worker over gRPC. It is described once a second for health and load; each prefill is one
// streaming call, watched for signs of life.

#include <memory>
#include <string>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "cachalot/v1/prefill.grpc.pb.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/event.h"
#include "common/rpc/task_group.h"
#include "router/cluster_view.h"
#include "router/member_client.h"
#include "router/worker_api.h"

namespace cachalot {

struct PrefillClientOptions {
  Duration describe_interval = std::chrono::seconds(1);
  Duration describe_timeout = std::chrono::seconds(2);
  /// Silence of a running prefill after which the worker counts as dead; it sends an event at least every 500
  /// ms.
  Duration silence_limit = std::chrono::seconds(3);
};

class PrefillClient final : public PrefillWorker, public MemberClient {
 public:
  /// As DecodeClient.
  PrefillClient(rpc::Loop* loop, std::string address, ClusterView* cluster,
                PrefillClientOptions options = {});

  rpc::Task<void> Run() override;
  void Stop() override;
  void Leave() override;
  bool Rejoin() override;

  const std::string& name() const override { return address_; }
  Status health() const override { return health_; }
  Status connection() const override { return connection_; }
  WorkerLoad load() const override { return load_; }
  uint64_t life() const override { return description_.epoch(); }
  /// `lease` must be a RemoteLease.
  std::unique_ptr<PrefillCall> Start(const SequenceState& state, DecodeCall& lease, PrefillOptions options,
                                     std::shared_ptr<FlowQueue> queue) override;

 private:
  class Call;
  struct Running;
  static rpc::Task<void> RunCall(PrefillClient* client, std::shared_ptr<Running> running);
  static rpc::Task<void> AwaitReader(rpc::Loop* loop, Running* running);
  static rpc::Task<void> Watch(PrefillClient* client, Running* running);
  void NewChannel();
  Status Admit(v1::Description& description);

  rpc::Loop* loop_;
  const std::string address_;
  ClusterView* cluster_;
  const PrefillClientOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Prefill::Stub> stub_;
  std::unique_ptr<v1::Cluster::Stub> describe_stub_;
  Status health_ = Unavailable("not connected yet");
  Status connection_ = health_;
  WorkerLoad load_;
  v1::Description description_;  // the last one that was admitted
  bool stopped_ = false, left_ = false;
  rpc::Event look_;      // describe it now
  rpc::TaskGroup calls_;
};

}  // namespace cachalot
