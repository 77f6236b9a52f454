#pragma once
// Prefill.Prefill and Cluster.Describe on the control loop. One call is one job:
//
//   Prefill -> Admit (compatible? valid? the queue full?) -> AwaitKv
//           -> KvPush::Run: opens the stream to the decode worker
//           -> PrefillStepLoop::Submit -> [ chunk: Progress to the caller, frames to the push ]*
//           -> FirstToken -> commit frame -> verdict -> Committed
//
// Whatever ends the call ends the job: its KV is freed after the chunk in progress, or its layer if the chunk is of no
// other job; its stream is cancelled.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "cachalot/v1/prefill.grpc.pb.h"
#include "common/kv/block_pool.h"
#include "common/rpc/async_queue.h"
#include "common/rpc/server.h"
#include "prefill_worker/kv_publisher.h"
#include "prefill_worker/metrics.h"
#include "prefill_worker/step_loop.h"

namespace cachalot {

struct PrefillServiceOptions {
  int max_queue = 256;        // jobs that wait or are computed
  Duration kv_wait = std::chrono::seconds(5);  // how long a job waits for KV that others hold
  bool debug_logits = false;  // accept forced tokens and requests for logits
  /// An event at least this often; prefill.proto promises 500 ms.
  Duration heartbeat = std::chrono::milliseconds(250);
  /// How long the caller may take to read an event.
  Duration write = std::chrono::seconds(10);
  /// The same while it drains: a caller that reads nothing does not hold the drain up.
  Duration drain_write = std::chrono::seconds(1);
  /// Of logits and prompt log probabilities that the caller of a job has not read; at least one row. At the
  /// bound the job waits, the others go on.
  int64_t unread_row_bytes = 8 << 20;
  KvPushOptions push;
};

class PrefillService {
 public:
  /// Registers with `server`; everything must outlive it, and this too.
  PrefillService(rpc::Server* server, rpc::Loop* control, const ModelConfig& config, BlockPools* pools,
                 PrefillStepLoop* step, v1::Description description, PrefillMetrics* metrics,
                 PrefillServiceOptions options);
  PrefillService(const PrefillService&) = delete;
  PrefillService& operator=(const PrefillService&) = delete;

  /// Any thread. Before Open and after Drain new calls are refused with UNAVAILABLE.
  void Open() { phase_.store(Phase::kOpen); }
  void Drain();
  /// Any thread but the control loop's: waits until no call runs. False at the deadline.
  bool WaitIdle(TimePoint deadline);

 private:
  using Writer = rpc::ServerWriter<v1::PrefillEvent>;
  using EventQueue = rpc::AsyncQueue<JobEvent>;
  enum class Phase { kStarting, kOpen, kDraining };
  struct Job;

  rpc::Task<Status> Describe(rpc::ServerCall& call, const v1::DescribeRequest& request,
                             v1::Description* description);
  rpc::Task<Status> Prefill(rpc::ServerCall& call, const v1::PrefillRequest& request, Writer& writer);

  /// Why new calls are refused; empty: they are not.
  std::string NotServing() const;
  StatusOr<SequenceState> Admit(const v1::PrefillRequest& request);
  void JoinQueue(const SequenceState& state, Job* job);
  rpc::Task<StatusOr<SequenceKv>> AwaitKv(rpc::ServerCall& call, Job* job, Writer& writer);
  void LeaveKvLine(Job* job);
  void StartJob(rpc::ServerCall& call, const v1::PrefillRequest& request, SequenceState state, SequenceKv kv, Job* job);
  rpc::Task<Status> FollowJob(rpc::ServerCall& call, Job* job, Writer& writer);
  rpc::Task<bool> WriteChunk(Job* job, const JobEvent& event, Writer& writer);
  rpc::Task<bool> WriteLogprobs(Job* job, const JobEvent& event, Writer& writer);
  rpc::Task<bool> WriteEvent(Job* job, const v1::PrefillEvent& event, Writer& writer);
  void TakeRows(Job* job, int64_t bytes);
  void EndJob(Job* job, const Status& status);

  // What comes from elsewhere, by the job's id: it may be gone by then.
  void OnStepEvent(uint64_t id, JobEvent event);
  void OnSent(uint64_t id, int64_t bytes);
  std::shared_ptr<KvPush> MakePush(uint64_t id, const std::string& address, uint64_t lease);
  std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address);
  void LeaveQueue(Job* job);
  void AddOpenCalls(int change);

  rpc::Loop* control_;
  const ModelConfig& config_;
  BlockPools* pools_;
  PrefillStepLoop* step_;
  const v1::Description description_;
  PrefillMetrics* metrics_;
  const PrefillServiceOptions options_;
  v1::Prefill::AsyncService prefill_;
  v1::Cluster::AsyncService cluster_;
  std::atomic<Phase> phase_{Phase::kStarting};
  std::mutex mutex_;
  std::condition_variable idle_;
  int open_calls_ = 0;  // under mutex_

  // Control loop.
  uint64_t next_id_ = 1;
  std::map<uint64_t, Job*> jobs_;                                   // of the calls that run
  int queued_ = 0;                                                  // those that wait or are computed
  std::deque<Job*> kv_line_;                                        // those that wait for KV
  TimePoint wanted_until_ = TimePoint::min();                       // by those that the full queue refused
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels_;  // to decode workers
};

}  // namespace cachalot
