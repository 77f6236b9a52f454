#pragma once
// The step thread of the prefill worker: the only one that computes. It owns the flow; others talk to it by
// posting to its loop, and what they posted takes effect between two chunks. A chunk that nobody waits for any
// more ends at its next layer.

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "common/base/time.h"
#include "common/rpc/loop.h"
#include "prefill_worker/kv_publisher.h"
#include "prefill_worker/metrics.h"
#include "prefill_worker/outage_grace.h"
#include "prefill_worker/prefill_flow.h"

namespace cachalot {

class PrefillStepLoop {
 public:
  /// Makes the experts on the step thread; their streams may live on `loop`, which that thread drives.
  using MakeExperts = std::function<StatusOr<std::unique_ptr<ExpertBackend>>(rpc::Loop* loop)>;

  /// What it is given must outlive this.
  /// `prefixes` may be null: no cache. An idle step thread blocks; it wakes every `idle_beat` to show that it
  /// could work.
  PrefillStepLoop(Model& model, int64_t max_chunk_tokens, PrefillMetrics* metrics,
                  PrefixStore* prefixes = nullptr, Duration idle_beat = std::chrono::seconds(1));
  /// Stops.
  ~PrefillStepLoop();
  PrefillStepLoop(const PrefillStepLoop&) = delete;
  PrefillStepLoop& operator=(const PrefillStepLoop&) = delete;

  /// Starts the thread and waits until it has its experts: their error, or DEADLINE_EXCEEDED. Once.
  Status Start(MakeExperts make_experts, Duration at_most);
  /// Ends the thread after the layer in progress and drops all jobs. Nothing may be sent any more.
  void Stop();

  // Any thread; nothing happens when the loop has stopped.
  /// `job.sink` becomes `encoder`.
  void Submit(PrefillJob job, std::shared_ptr<KvEncoder> encoder);
  /// Frees the job's KV after the chunk in progress, or its layer if the chunk is of no other job; its encoder
  /// reports nothing more after that.
  void Cancel(uint64_t id);
  /// So many bytes of the job's frames were sent.
  void Release(uint64_t id, int64_t bytes);
  /// The caller has read events of the job with so many `row_bytes`.
  void ReleaseRows(uint64_t id, int64_t bytes);

  /// When the step thread last showed that it is alive: a turn of its loop or a layer of a chunk.
  TimePoint last_beat() const { return TimePoint(Duration(last_beat_.load(std::memory_order_relaxed))); }

 private:
  // Experts that tell of every layer: a chunk of a large model takes longer than a hang may go unnoticed. While
  // a shard is away the layer is begun again, for up to the grace: rows that were pushed cannot be computed again
  // under the same attempt, and every worker that tried meanwhile would only find the same shard away.
  class PatientExperts final : public ExpertBackend {
   public:
    PatientExperts(std::unique_ptr<ExpertBackend> experts, PrefillStepLoop* step)
        : experts_(std::move(experts)), step_(step) {}
    Status Begin(const ExpertCall& call) override;
    Status Wait() override;

   private:
    Status TryBegin();
    /// True when what failed with `status` should be tried again; some time has passed then.
    bool Again(const Status& status);

    std::unique_ptr<ExpertBackend> experts_;
    PrefillStepLoop* step_;
    ExpertCall call_;
    TimePoint begun_;  // the first try of it
    OutageGrace outage_;
  };
  struct Mail {
    enum class Kind { kSubmit, kCancel, kRelease, kReleaseRows } kind{};
    uint64_t id = 0;
    int64_t bytes = 0;
    std::shared_ptr<PrefillJob> job;
    std::shared_ptr<KvEncoder> encoder;
  };

  void Main(const MakeExperts& make_experts, std::promise<Status>* started);
  void RunChunks();
  void Send(Mail mail);
  void HandleMail();
  Status ChunkGoesOn();
  void RunChunk();
  void Beat() {
    last_beat_.store(std::chrono::steady_clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  }

  Model& model_;
  const int64_t max_chunk_tokens_;
  PrefillMetrics* metrics_;
  PrefixStore* const prefixes_;
  const Duration idle_beat_;
  std::atomic<int64_t> last_beat_{0};
  std::thread thread_;

  // Step thread.
  std::unique_ptr<PatientExperts> experts_;
  std::unique_ptr<PrefillFlow> flow_;
  std::map<uint64_t, std::shared_ptr<KvEncoder>> encoders_;  // of jobs that may still report
  // Remote experts poll the loop inside a chunk, so what is posted waits here for its end.
  std::vector<Mail> mail_;
  bool stop_ = false;
  rpc::Loop loop_{{.name = "step"}};
};

}  // namespace cachalot
