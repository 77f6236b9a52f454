#pragma once
// The step thread of the prefill worker: the only one that computes. It owns the flow; others talk to it by posting to
// its loop, and what they posted takes effect between two chunks.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "common/base/time.h"
#include "common/rpc/loop.h"
#include "prefill_worker/kv_publisher.h"
#include "prefill_worker/metrics.h"
#include "prefill_worker/prefill_flow.h"

namespace cachalot {

class PrefillStepLoop {
 public:
  /// `loop` is driven by the step thread alone from Start on; the channels of remote experts belong to it. Everything
  /// must outlive this.
  PrefillStepLoop(rpc::Loop* loop, Model& model, ExpertBackend& experts, int64_t max_chunk_tokens, PrefillMetrics* metrics);
  /// Stops.
  ~PrefillStepLoop();
  PrefillStepLoop(const PrefillStepLoop&) = delete;
  PrefillStepLoop& operator=(const PrefillStepLoop&) = delete;

  void Start();
  /// Drops all jobs and ends the thread after the chunk in progress. Not on the step thread.
  void Stop();

  // Any thread; nothing happens when the loop has stopped.
  /// `job.sink` becomes `encoder`.
  void Submit(PrefillJob job, std::shared_ptr<KvEncoder> encoder);
  /// Frees the job's KV after the chunk in progress; its encoder reports nothing more after that.
  void Cancel(uint64_t id);
  /// So many bytes of the job's frames were sent.
  void Release(uint64_t id, int64_t bytes);

  /// When the step thread last showed that it is alive: a turn of its loop or a layer of a chunk.
  TimePoint last_beat() const { return TimePoint(Duration(last_beat_.load(std::memory_order_relaxed))); }

 private:
  // Experts that tell of every layer: a chunk of a large model takes longer than a hang may go unnoticed.
  class BeatingExperts final : public ExpertBackend {
   public:
    BeatingExperts(ExpertBackend& experts, PrefillStepLoop* step) : experts_(experts), step_(step) {}
    Status Begin(const ExpertCall& call) override {
      step_->Beat();
      return experts_.Begin(call);
    }
    Status Wait() override { return experts_.Wait(); }

   private:
    ExpertBackend& experts_;
    PrefillStepLoop* step_;
  };
  struct Mail {
    enum class Kind { kSubmit, kCancel, kRelease } kind{};
    uint64_t id = 0;
    int64_t bytes = 0;
    std::shared_ptr<PrefillJob> job;
    std::shared_ptr<KvEncoder> encoder;
  };

  void Run();
  void Send(Mail mail);
  void HandleMail();
  void RunChunk();
  void Beat() {
    last_beat_.store(std::chrono::steady_clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  }

  rpc::Loop* loop_;
  BeatingExperts experts_;
  PrefillMetrics* metrics_;
  std::atomic<int64_t> last_beat_;
  std::thread thread_;

  // Step thread. Remote experts poll the loop inside a chunk, so what is posted waits in `mail_` for its end.
  PrefillFlow flow_;
  std::vector<Mail> mail_;
  std::map<uint64_t, std::shared_ptr<KvEncoder>> encoders_;  // of jobs that may still report
};

}  // namespace cachalot
