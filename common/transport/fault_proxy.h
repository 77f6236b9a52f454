#pragma once
// A channel that misbehaves on purpose: delay, loss, duplication, corruption and death, decided frame by
// frame. It never sleeps: a delayed frame moves on at a later Poll.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "common/transport/transport.h"

namespace cachalot {

enum class FrameDirection { kOut, kIn };

/// What happens to one frame. Frames behind a delayed one wait too: order is kept.
struct Fault {
  bool lose = false;
  bool duplicate = false;
  std::optional<size_t> corrupt_byte;  // its lowest bit is flipped (modulo the frame's size)
  int delay_polls = 0;                 // calls of Poll before it moves on
  Duration delay{};                    // by the clock
  bool die = false;                    // the channel breaks instead
};

/// `index` counts the frames of a direction from 0. Must not depend on anything but its arguments and its own
/// state.
using FaultPlan = std::function<Fault(FrameDirection direction, int64_t index)>;

/// The channel breaks at frame number `frames` of the direction.
FaultPlan DieAfter(FrameDirection direction, int64_t frames);
/// `fault` for frame `index` of the direction, nothing else.
FaultPlan FaultAt(FrameDirection direction, int64_t index, Fault fault);
/// Each kind of fault but death with probability `rate`, from a fixed pseudo-random sequence.
FaultPlan RandomFaults(uint64_t seed, double rate);

class FaultProxy final : public FrameChannel {
 public:
  FaultProxy(std::unique_ptr<FrameChannel> inner, FaultPlan plan, const Clock* clock);

  Status Post(Frame frame, TimePoint deadline) override;
  std::optional<Frame> Poll() override;
  Status status() const override;
  const Capabilities& capabilities() const override { return capabilities_; }

 private:
  struct Held {
    Frame frame;
    TimePoint deadline;  // out: of the Post
    int64_t poll;        // moves on at this poll
    TimePoint time;      // and not before this
  };
  /// Applies the plan to a frame and queues what is left of it.
  void Take(FrameDirection direction, Frame frame, TimePoint deadline);
  bool Ready(const Held& held) const;
  Status SendHeld();

  std::unique_ptr<FrameChannel> inner_;  // null once dead
  const Capabilities capabilities_;
  const FaultPlan plan_;
  const Clock* clock_;
  std::deque<Held> out_, in_;
  int64_t frames_out_ = 0, frames_in_ = 0, polls_ = 0;
};

}  // namespace cachalot
