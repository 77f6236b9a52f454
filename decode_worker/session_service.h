#pragma once
// Decode.Session: one bidi stream a router, everything of one router's requests on it
// (protos/cachalot/v1/decode.proto).
//
//   Hello -> HelloReply, then for each request: Open -> Granted | Failed; its KV arrives through kv_service;
//   StepBatch after StepBatch with its tokens; gone after its finish, a Failed, a Preempted or a Close.
//   Heartbeats both ways.
//
// A Session that ends or falls silent is broken: its leases live on for the grace, then they are freed. A
// router that comes back opens a new one. Everything here runs on the control loop.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cachalot/v1/decode.grpc.pb.h"
#include "common/kv/block_pool.h"
#include "common/model/config.h"
#include "common/rpc/server.h"
#include "decode_worker/kv_claims.h"
#include "decode_worker/lease_table.h"
#include "decode_worker/metrics.h"
#include "decode_worker/step_batches.h"
#include "decode_worker/step_loop.h"

namespace cachalot {

struct SessionOptions {
  bool debug_logits = false;                            // accept `forced` and `want_logits`
  Duration heartbeat = std::chrono::milliseconds(500);  // sent when nothing else was, and asked of the router
  size_t queue_limit = 16384;  // messages; a sequence's window holds it long before a reader fills this
  size_t step_batch_bytes = kStepBatchBytes;  // a step with more comes in several messages
  int64_t reserve_ahead =
      256;  // tokens of KV that a lease has at first behind its context, max_tokens at most
  Duration last_words = std::chrono::seconds(1);  // for what is on its way when a Session ends
};

class SessionService {
 public:
  /// Registers with `server` on `loop`. Everything given must outlive this, and this must outlive the server.
  SessionService(rpc::Server* server, rpc::Loop* loop, LeaseTable& leases, BlockPools& pools, StepLoop& step,
                 const ModelConfig& config, const v1::Compat& compat, DecodeMetrics& metrics,
                 SessionOptions options);
  ~SessionService();

  // The rest on the loop's thread.
  /// The tokens of one step; those of sequences that were closed meanwhile are dropped.
  void Deliver(std::vector<TokenOut> tokens);
  /// Every 50 ms or so: heartbeats, silent Sessions, the end of graces.
  void Tick();
  /// From the start on no lease is granted until Accept, nor after Refuse: UNAVAILABLE with `why`.
  void Accept() { refusing_.clear(); }
  void Refuse(std::string why) { refusing_ = std::move(why); }
  /// Ends every Session when what is queued for it has been sent, and from now on every new one at once.
  void EndAll(const Status& status);
  /// Those that have ended count until what they had queued is sent, or given up.
  size_t open() const { return sessions_.size() + flushing_; }
  v1::Load CurrentLoad() const;

 private:
  using Stream = rpc::ServerStream<v1::SessionRequest, v1::SessionResponse>;
  struct Session;

  rpc::Task<Status> Serve(rpc::ServerCall& call, Stream& stream);
  rpc::Task<void> Read(std::shared_ptr<Session> session);
  Status Handle(Session& session, const v1::SessionRequest& request);
  Status Greet(Session& session, const v1::Hello& hello);
  Status Open(Session& session, const v1::Open& open);
  StatusOr<Lease*> Grant(Session& session, const v1::Open& open);
  Status OthersFirst(const Session& session, const SequenceState& state);
  StatusOr<SequenceKv> ReserveFor(const SequenceState& state, bool preemptible);
  Status Acknowledge(Session& session, const v1::Acknowledge& acknowledge);
  void Close(Session& session, uint64_t handle);
  void Fail(Session& session, uint64_t handle, const Status& status);
  void Preempt(const Lease& lease, int64_t next_index);
  void Tell(Session& session, v1::Load* load);
  void Send(Session& session, v1::SessionResponse response);
  static void End(Session& session, const Status& status);

  rpc::Loop* loop_;
  LeaseTable& leases_;
  BlockPools& pools_;
  StepLoop& step_;
  const ModelConfig& config_;
  const v1::Compat& compat_;
  DecodeMetrics& metrics_;
  const SessionOptions options_;
  v1::Decode::WithAsyncMethod_Session<v1::Decode::Service> service_;
  std::map<uint64_t, std::shared_ptr<Session>> sessions_;  // by the lease table's ids
  size_t flushing_ = 0;  // have ended and still send
  Status over_;          // not OK behind EndAll
  KvClaims claims_;
  std::string refusing_ = "starting: this decode worker has not reached its experts yet";
};

}  // namespace cachalot
