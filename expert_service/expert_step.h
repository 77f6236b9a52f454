#pragma once
// What an expert service computes, over frame channels: collects the calls of all callers, runs calls of the
// same layer as one batch, answers each. A row's arithmetic does not depend on its batch, so batching changes
// no bit.
//
//   Collect: take frames that have arrived -> check -> wait in line, or answer with an error
//   RunBatch: the oldest call's layer, with every other waiting call of that layer -> ExpertFfn -> replies
//
// One thread, no gRPC, no sleeping: the caller polls and decides when to come back (Due).

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/base/time.h"
#include "common/moe/expert_ffn.h"
#include "common/moe/expert_frame.h"
#include "common/transport/transport.h"

namespace cachalot {

struct ExpertStepOptions {
  /// How long the oldest call may wait for calls of other callers. Nothing waits when every busy caller has a
  /// call in line, which is always so with a single one.
  Duration batch_wait = std::chrono::microseconds(50);
  /// A caller is busy when it called so short a time before the oldest call: another of its calls may come in
  /// time. Connected but idle ones (a prefill worker without prompts) would cost every call its wait.
  Duration busy = std::chrono::milliseconds(1);
  int64_t max_batch_rows = 8192;  // calls beyond wait for the next batch; one call is never cut
  size_t max_waiting_calls = 4;   // in line per caller; more stay in its channel
  Duration reply_timeout = std::chrono::seconds(5);  // a caller that takes no replies for so long is cut off
};

/// Told what happens, for metrics. On the step's thread.
class ExpertStepObserver {
 public:
  virtual ~ExpertStepObserver() = default;
  virtual void OnCallers(int64_t /*connected*/) {}
  virtual void OnBatch(int64_t /*calls*/, int64_t /*rows*/) {}
  /// From the call's arrival at the step to its reply.
  virtual void OnReply(Duration /*latency*/) {}
  virtual void OnError(const Status& /*error*/) {}
};

class ExpertStep {
 public:
  using LayerTable = std::function<std::span<const ExpertMatrices>(int layer)>;

  /// `clock` and `observer` (may be null) must outlive this.
  ExpertStep(LayerTable layers, const ExpertCallLimits& limits, ExpertFfn ffn,
             const ExpertStepOptions& options, const Clock* clock, ExpertStepObserver* observer = nullptr);

  void Add(std::shared_ptr<FrameChannel> caller);
  /// Forgets the caller and its calls. Channels that broke are forgotten by Collect.
  void Remove(const FrameChannel* caller);

  void Collect();
  /// When the next batch is to run: now or earlier means at once; nothing when no call waits.
  std::optional<TimePoint> Due() const;
  /// Runs one batch, due or not, and answers it. False when no call waits.
  bool RunBatch();

  int64_t callers() const { return static_cast<int64_t>(callers_.size()); }

 private:
  struct Caller {
    std::shared_ptr<FrameChannel> channel;
    size_t waiting = 0;                // its calls in line
    std::optional<TimePoint> arrived;  // its last call
  };
  struct Call {
    std::shared_ptr<FrameChannel> channel;
    Frame frame;  // what `view` points into
    ExpertFrameHeader header;
    ExpertCallView view;
    TimePoint arrived;
  };
  void Take(Caller& caller, Frame frame);
  void Refuse(FrameChannel& channel, uint64_t call, uint32_t layer, const Status& error);
  std::vector<Call> TakeBatch();
  void RunAlone(Call& call);
  void RunTogether(std::vector<Call>& calls, int64_t rows);
  void Reply(Call& call, std::vector<std::byte> reply);

  const LayerTable layers_;
  const ExpertCallLimits limits_;
  ExpertFfn ffn_;
  const ExpertStepOptions options_;
  const Clock* const clock_;
  ExpertStepObserver no_observer_;
  ExpertStepObserver* const observer_;
  std::vector<Caller> callers_;
  std::deque<Call> line_;  // in order of arrival
  // A batch of several calls; kept for its memory.
  std::vector<ExpertAssignment> assignments_;
  std::vector<float> x_, partials_;
};

}  // namespace cachalot
