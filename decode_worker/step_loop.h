#pragma once
// The step thread: runs the continuous batch and nothing else. It owns the model's use, the experts and the
// running sequences; the control loop talks to it by mail, and it answers by handing out each step's tokens.
//
//   [ mail: Join, Acknowledge, Remove -> DecodeFlow::Step -> tokens to `deliver` ]*, asleep when idle

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/time.h"
#include "common/rpc/loop.h"
#include "decode_worker/decode_flow.h"

namespace cachalot {

struct StepFigures {
  size_t batch = 0;
  Duration duration{};
};

class StepLoop {
 public:
  /// Makes the experts on the step thread; their streams may live on `loop`, which that thread drives.
  using MakeExperts = std::function<StatusOr<std::unique_ptr<ExpertBackend>>(rpc::Loop* loop)>;
  /// The tokens of one step, on the step thread: post them on. A batch of 0: preemptions without a step.
  using Deliver = std::function<void(std::vector<TokenOut> tokens, StepFigures figures)>;

  /// `clock` judges how long experts may be away. `spin_us`: how long the thread polls before it sleeps.
  StepLoop(Model& model, const Clock& clock, DecodeOptions options, int spin_us = 0);
  /// Stops. Sequences that still run are dropped and their KV is freed.
  ~StepLoop();

  /// Starts the thread and waits until it has its experts: their error, or DEADLINE_EXCEEDED. Once.
  Status Start(MakeExperts make_experts, Deliver deliver, Duration at_most);
  /// Ends the thread after the layer in progress.
  void Stop();

  // Any thread. In order; taken between two steps. A step of slow experts ends early for a Remove.
  void Join(uint64_t id, SequenceState state, SequenceKv kv, int32_t first_token, bool preemptible);
  void Remove(std::vector<uint64_t> ids);
  /// Pairs of id and the output index up to which the reader has everything.
  void Acknowledge(std::vector<std::pair<uint64_t, int64_t>> next_indices);
  /// As DecodeFlow::Reclaim.
  void Reclaim(int64_t tokens);

  /// Sequences wait for KV that others hold who do not run.
  bool starved() const { return starved_.load(std::memory_order_relaxed); }
  int64_t running() const { return running_.load(std::memory_order_relaxed); }
  /// When the thread last showed that it moves: a turn of its loop or a layer of a step.
  TimePoint alive() const { return TimePoint(Duration(alive_.load(std::memory_order_relaxed))); }

 private:
  struct JoinMessage {
    uint64_t id;
    SequenceState state;
    SequenceKv kv;
    int32_t first_token;
    bool preemptible;
  };
  struct RemoveMessage {
    std::vector<uint64_t> ids;
  };
  struct AcknowledgeMessage {
    std::vector<std::pair<uint64_t, int64_t>> next_indices;
  };
  struct ReclaimMessage {
    int64_t tokens;
  };
  struct StopMessage {};
  using Message = std::variant<JoinMessage, RemoveMessage, AcknowledgeMessage, ReclaimMessage, StopMessage>;

  void Main(MakeExperts make_experts, std::promise<Status>* started);
  void Beat() { alive_.store(loop_.Now().time_since_epoch().count(), std::memory_order_relaxed); }
  void RunSteps();
  void WaitForMail(TimePoint until);
  void TakeMail();
  void Send(Message message);
  void Take(JoinMessage& message);
  void Take(RemoveMessage& message);
  void Take(AcknowledgeMessage& message);
  void Take(ReclaimMessage& message) { flow_->Reclaim(message.tokens); }
  void Take(StopMessage&) { stop_ = true; }

  Model& model_;
  const Clock& clock_;
  const DecodeOptions options_;
  rpc::Loop loop_;
  std::thread thread_;
  Deliver deliver_;
  // Step thread.
  std::unique_ptr<ExpertBackend> experts_;
  std::unique_ptr<DecodeFlow> flow_;
  std::vector<Message> taken_;
  bool stop_ = false;

  // Not posts of the loop: the experts poll it in the middle of a step, where the batch must not change.
  std::mutex mutex_;
  std::vector<Message> mail_;

  std::atomic<int64_t> running_{0}, alive_{0};
  std::atomic<bool> starved_{false};
  std::atomic<DecodeFlow::Awaited> awaited_{DecodeFlow::Awaited::kNothing};  // what mail_ has of it
};

}  // namespace cachalot
