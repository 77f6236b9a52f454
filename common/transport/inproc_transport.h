#pragma once
// Channels between two threads of one process, or between two parts of one thread. Frames move by pointer.

#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>

#include "common/transport/transport.h"

namespace cachalot {

/// The Progress of a thread that has ends of in-process channels: it sleeps until one of them got a frame or
/// broke.
class InprocProgress final : public Progress {
 public:
  void WaitUntil(TimePoint deadline) override;
  /// Any thread: ends the current or the next wait.
  void Wake();

 private:
  std::mutex mutex_;
  std::condition_variable woken_;
  bool pending_ = false;
};

struct InprocOptions {
  size_t max_frame_bytes = size_t{1} << 30;
  size_t max_queued_frames = 64;  // of each direction; more: RESOURCE_EXHAUSTED
};

using FrameChannelPair = std::pair<std::unique_ptr<FrameChannel>, std::unique_ptr<FrameChannel>>;

/// Two ends; each belongs to one thread. `first` and `second` are told when something comes for their end.
/// Destroying an end breaks the other with UNAVAILABLE; what was sent before can still be polled there.
FrameChannelPair MakeInprocPair(std::shared_ptr<InprocProgress> first, std::shared_ptr<InprocProgress> second,
                                const InprocOptions& options = {});

}  // namespace cachalot
