#include "common/transport/inproc_transport.h"

#include <array>
#include <deque>

namespace cachalot {

void InprocProgress::WaitUntil(TimePoint deadline) {
  std::unique_lock lock(mutex_);
  if (deadline == TimePoint::max()) {
    woken_.wait(lock, [this] { return pending_; });  // wait_until(max) overflows in libstdc++
  } else {
    woken_.wait_until(lock, deadline, [this] { return pending_; });
  }
  pending_ = false;
}

void InprocProgress::Wake() {
  std::lock_guard lock(mutex_);
  pending_ = true;
  woken_.notify_one();
}

namespace {

/// Both directions of a pair. Queue i holds what end i will poll.
struct Shared {
  std::mutex mutex;
  std::array<std::deque<Frame>, 2> queues;
  std::array<std::shared_ptr<InprocProgress>, 2> progress;
  std::array<bool, 2> closed = {};
};

class InprocChannel final : public FrameChannel {
 public:
  InprocChannel(std::shared_ptr<Shared> shared, int end, const InprocOptions& options)
      : shared_(std::move(shared)), end_(end), options_(options) {
    capabilities_.name = "inproc";
    capabilities_.max_frame_bytes = options.max_frame_bytes;
  }
  ~InprocChannel() override {
    {
      std::lock_guard lock(shared_->mutex);
      shared_->closed[end_] = true;
      shared_->queues[end_].clear();
    }
    shared_->progress[1 - end_]->Wake();
  }

  Status Post(Frame frame, TimePoint) override {
    if (frame.bytes.size() > options_.max_frame_bytes)
      return InvalidArgument("frame of " + std::to_string(frame.bytes.size()) + " bytes, at most " +
                             std::to_string(options_.max_frame_bytes));
    {
      std::lock_guard lock(shared_->mutex);
      if (shared_->closed[1 - end_]) return Unavailable("the other end of the channel is closed");
      auto& queue = shared_->queues[1 - end_];
      if (queue.size() >= options_.max_queued_frames)
        return ResourceExhausted(std::to_string(queue.size()) + " frames wait at the other end");
      queue.push_back(std::move(frame));
    }
    shared_->progress[1 - end_]->Wake();
    return OkStatus();
  }

  std::optional<Frame> Poll() override {
    std::lock_guard lock(shared_->mutex);
    auto& queue = shared_->queues[end_];
    if (queue.empty()) return std::nullopt;
    std::optional<Frame> frame(std::move(queue.front()));
    queue.pop_front();
    return frame;
  }

  Status status() const override {
    std::lock_guard lock(shared_->mutex);
    return shared_->closed[1 - end_] ? Unavailable("the other end of the channel is closed") : OkStatus();
  }

  const Capabilities& capabilities() const override { return capabilities_; }

 private:
  const std::shared_ptr<Shared> shared_;
  const int end_;
  const InprocOptions options_;
  Capabilities capabilities_;
};

}  // namespace

FrameChannelPair MakeInprocPair(std::shared_ptr<InprocProgress> first, std::shared_ptr<InprocProgress> second,
                                const InprocOptions& options) {
  auto shared = std::make_shared<Shared>();
  shared->progress = {std::move(first), std::move(second)};
  return {std::make_unique<InprocChannel>(shared, 0, options),
          std::make_unique<InprocChannel>(shared, 1, options)};
}

}  // namespace cachalot
