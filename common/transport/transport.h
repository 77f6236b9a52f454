#pragma once
// The data plane's seam: a duplex of frames between two peers, driven by one thread. Implementations differ
// in how bytes move (in process, gRPC byte frames, later UCX and NCCL); whoever uses a channel cannot tell.

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"

namespace cachalot {

struct Frame {
  std::vector<std::byte> bytes;
};

/// What a kind of channel can do, for the selector.
struct Capabilities {
  std::string name;  // "inproc", "grpc"
  bool crosses_processes = false, crosses_hosts = false, device_memory = false;
  size_t max_frame_bytes = 0;
};

class FrameChannel {
 public:
  virtual ~FrameChannel() = default;

  /// Queues a frame; frames arrive whole and in order, or the channel breaks. Never blocks. UNAVAILABLE when
  /// the channel is broken, RESOURCE_EXHAUSTED when its queue is full, INVALID_ARGUMENT for a frame above the
  /// limit. A frame that has not been sent by `deadline` breaks the channel, at the latest when the channel
  /// is next used.
  virtual Status Post(Frame frame, TimePoint deadline) = 0;

  /// The next frame that has arrived, if any; also from a channel that broke after it came. Never blocks.
  virtual std::optional<Frame> Poll() = 0;

  /// OK while connected or connecting, else why it broke. A broken channel stays broken: make a new one.
  virtual Status status() const = 0;

  virtual const Capabilities& capabilities() const = 0;
};

/// Moves the bytes of all channels of one thread.
class Progress {
 public:
  virtual ~Progress() = default;
  /// Runs what is ready; waits until something was or `deadline`.
  virtual void WaitUntil(TimePoint deadline) = 0;
};

}  // namespace cachalot
