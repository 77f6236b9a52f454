#pragma once
// A decode worker over gRPC: one Session that carries all of this router's requests (protos: decode.proto).
// It connects, says hello, beats, and connects again by itself; when the Session breaks every request on it
// fails UNAVAILABLE.

#include <map>
#include <memory>
#include <string>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "cachalot/v1/decode.grpc.pb.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/task_group.h"
#include "common/rpc/write_queue.h"
#include "router/cluster_view.h"
#include "router/member_client.h"
#include "router/worker_api.h"

namespace cachalot {

struct DecodeClientOptions {
  Duration connect_timeout = std::chrono::seconds(2);
  Duration heartbeat_interval = std::chrono::milliseconds(500);
  /// Silence after which the worker counts as dead.
  Duration silence_limit = std::chrono::seconds(3);
  Duration reconnect_delay = std::chrono::milliseconds(100);
  /// Messages that wait for a worker which reads too slowly, before its Session is broken.
  size_t queue_limit = 65536;
};

/// The gRPC form of a lease, for the prefill client.
class RemoteLease : public DecodeCall {
 public:
  virtual const v1::Lease& lease() const = 0;
  virtual const std::string& address() const = 0;
};

class DecodeClient final : public DecodeWorker, public MemberClient {
 public:
  /// Any thread; `loop` and `cluster` must outlive this. Destroy only when Run has ended and no call is left, or
  /// the loop has stopped.
  DecodeClient(rpc::Loop* loop, std::string address, uint64_t router_epoch, ClusterView* cluster,
               DecodeClientOptions options = {});
  ~DecodeClient() override;

  rpc::Task<void> Run() override;
  void Stop() override;
  void Leave() override;
  bool Rejoin() override;

  const std::string& name() const override { return address_; }
  Status health() const override { return health_.ok() ? serving_ : health_; }
  Status connection() const override { return health_; }
  WorkerLoad load() const override { return load_; }
  std::unique_ptr<DecodeCall> Open(const SequenceState& state, std::shared_ptr<FlowQueue> queue) override;

 private:
  class Call;
  using Stream = rpc::ClientStream<v1::SessionRequest, v1::SessionResponse>;
  struct Session;  // one life of the connection

  rpc::Task<Status> RunSession();
  rpc::Task<void> Beat(Session* session);
  rpc::Task<Status> Describe();
  void NewChannel();
  void Dispatch(const v1::SessionResponse& response);
  void DispatchStep(const v1::StepBatch& batch);
  void FailAll(const Status& status);
  void Send(v1::SessionRequest request);
  void Heard(const v1::Load& load);
  Call* Find(uint64_t handle);

  rpc::Loop* loop_;
  const std::string address_;
  const uint64_t router_epoch_;
  ClusterView* cluster_;
  const DecodeClientOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Decode::Stub> stub_;
  std::unique_ptr<v1::Cluster::Stub> describe_stub_;
  Session* session_ = nullptr;
  Status health_ = Unavailable("not connected yet");  // of the connection
  Status serving_;                                    // by what it said last
  WorkerLoad load_;
  v1::Description description_;  // the last one that was admitted
  bool stopped_ = false, left_ = false;
  uint64_t next_handle_ = 1;
  std::map<uint64_t, Call*> calls_;
};

}  // namespace cachalot
