#pragma once
// The routed experts of a layer in expert services: one frame channel per shard, one call frame per shard and
// layer.
//
//   Begin: split the plan by shard -> re-make broken channels -> post a call frame to every shard that is
//   needed Wait:  poll until each of them has answered this call -> put the reply's slots where the caller
//   wants them
//
// It is used by one thread, the step thread. gRPC is behind ChannelFactory and FrameChannel
// (connect_experts.h).

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"
#include "common/moe/expert_backend.h"
#include "common/moe/expert_frame.h"
#include "common/moe/shard_map.h"
#include "common/moe/split_plan.h"
#include "common/transport/transport.h"

namespace cachalot {

class ChannelFactory {
 public:
  virtual ~ChannelFactory() = default;

  /// A channel to a service that was asked just now and is compatible, the same shard as before and alive.
  /// Waits until `deadline` at most, where an attempt under way may go on and the next Connect gets its
  /// result.
  virtual StatusOr<std::unique_ptr<FrameChannel>> Connect(int shard, TimePoint deadline) = 0;

  /// The service behind the last channel of `shard` when it may be another than in the beginning, else null.
  virtual const ShardInfo* Current(int /*shard*/) const { return nullptr; }

  /// When the service behind the last channel of `shard` last answered a question whether it lives; with
  /// `ask` it is asked, unless an answer is due already. Never waits.
  virtual TimePoint Heard(int shard, bool ask) = 0;
  /// It was given up for its silence: its connection may only look alive.
  virtual void Silent(int /*shard*/) {}
};

struct RemoteExpertsOptions {
  Duration call_timeout = std::chrono::seconds(5);  // from Begin to the last reply
  /// A service that owes a reply may be slow or may hang. After `ask_after` it is asked whether it lives,
  /// which another thread of it answers; `silence_limit` after its last sign of life it counts as dead. The
  /// step thread serves nobody meanwhile.
  Duration ask_after = std::chrono::milliseconds(500);
  Duration silence_limit = std::chrono::seconds(1);
  /// How long Begin may wait for one broken channel: the step thread has other sequences to look after.
  Duration reconnect_wait = std::chrono::milliseconds(200);
};

class RemoteExperts final : public ExpertBackend {
 public:
  struct Stats {
    uint64_t calls = 0;          // call frames posted
    uint64_t stale_replies = 0;  // answers to calls that were given up, or given twice; dropped
    uint64_t connects = 0;       // channels made
  };

  /// `progress` moves the bytes of the factory's channels. `clock` must outlive this.
  RemoteExperts(ShardMap map, std::unique_ptr<ChannelFactory> factory, std::shared_ptr<Progress> progress,
                const Clock* clock, const RemoteExpertsOptions& options = {});

  /// Opens every shard's channel now rather than with the first call that needs it.
  Status ConnectAll(TimePoint deadline);

  /// UNAVAILABLE names the shard and its address when its channel cannot be made or used; FAILED_PRECONDITION
  /// when something else answers there. A call that was begun and not waited for is given up.
  Status Begin(const ExpertCall& call) override;

  /// UNAVAILABLE when a channel broke or brought a damaged frame, or when a service hangs; DEADLINE_EXCEEDED
  /// with the shards that live but did not answer and for how long; those channels are dropped. The error of
  /// a service that refused the call comes with the shard's name; INVALID_ARGUMENT as INTERNAL, for no client
  /// made the call.
  Status Wait() override;

  const Stats& stats() const { return stats_; }

 private:
  struct Shard {
    std::unique_ptr<FrameChannel> channel;
    bool waiting = false;  // for the reply to the current call
  };
  Status EnsureChannel(int shard, TimePoint deadline);
  /// All that the current call needs, or the first error after every one of them was tried.
  Status EnsureNeeded();
  Status PostCall(int shard, const ShardPlan& plan);
  /// Takes what has arrived for `shard`.
  Status Receive(int shard);
  Status Accept(int shard, const Frame& frame);
  Status AcceptReply(int shard, const ExpertFrameView& frame);
  Status TimedOut();
  /// UNAVAILABLE when a service that has not answered gives no sign of life either.
  Status CheckAlive(TimePoint now);
  /// Ends the call: later answers to it are stale.
  void GiveUp();
  Status Broken(int shard, const Status& why);
  Status OurFault(int shard, const Status& refusal) const;

  ShardMap map_;
  const std::unique_ptr<ChannelFactory> factory_;
  const std::shared_ptr<Progress> progress_;
  const Clock* const clock_;
  const RemoteExpertsOptions options_;
  std::vector<Shard> shards_;
  PlanSplitter splitter_;
  const std::vector<ShardPlan>* plans_ = nullptr;  // of the current call
  ExpertCall call_;
  uint64_t call_id_ = 0;
  TimePoint begun_{};
  Stats stats_;
};

}  // namespace cachalot
