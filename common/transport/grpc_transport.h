#pragma once
// Frame channels over gRPC streams of raw frames. Everything here belongs to the thread that drives the loop:
// it posts and polls, and its PollOnce (LoopProgress) moves the bytes. A posted frame is handed to gRPC at
// once if the stream is idle, so that it travels while the thread computes. Frames are sent from their own
// memory and received with one copy.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/rpc/client.h"
#include "common/rpc/loop.h"
#include "common/rpc/server_call.h"
#include "common/rpc/task.h"
#include "common/transport/transport.h"

namespace cachalot {

/// For ChannelOptions and ServerOptions at both ends as well: gRPC's own limit is 4 MiB.
inline constexpr int kMaxGrpcFrameBytes = 256 * 1024 * 1024;

struct GrpcChannelOptions {
  std::string peer;  // for messages
  size_t max_frame_bytes = kMaxGrpcFrameBytes;
  size_t max_queued_frames = 64;  // of each direction; received ones beyond stay in the network
  std::vector<std::pair<std::string, std::string>> metadata;  // client only; keys in lower case
};

class LoopProgress final : public Progress {
 public:
  /// The loop is driven by the thread that calls WaitUntil, and not from inside one of its tasks.
  explicit LoopProgress(rpc::Loop* loop) : loop_(loop) {}
  void WaitUntil(TimePoint deadline) override { loop_->PollOnce(deadline); }

 private:
  rpc::Loop* loop_;
};

/// Client side: opens a stream of `method` ("/package.Service/Method"). It connects while the loop is polled
/// and takes frames meanwhile. Destroying it cancels the call; the loop then has to be polled, or to end.
std::unique_ptr<FrameChannel> OpenGrpcChannel(rpc::Loop* loop, std::shared_ptr<grpc::Channel> channel,
                                              std::string method, GrpcChannelOptions options);

class GrpcFrames;  // the queues of one stream

/// Server side: the stream of one call as a channel.
///
///   Task<Status> Handle(ServerCall& call, RawServerStream& stream) {
///     auto channel = std::make_shared<GrpcServerChannel>(&call, &stream, options);
///     ... show the channel to whoever uses it ...
///     Status status = co_await channel->Serve();
///     ... take it away again ...
///     co_return status;
///   }
class GrpcServerChannel final : public FrameChannel {
 public:
  GrpcServerChannel(rpc::ServerCall* call, rpc::RawServerStream* stream, GrpcChannelOptions options);
  ~GrpcServerChannel() override;

  /// Until the client half-closes or goes away, or Close; then sends what is queued, for a second at most.
  /// The channel is broken afterwards.
  rpc::Task<Status> Serve();
  /// Ends the call with `status` once what is queued has been sent.
  void Close(const Status& status);

  Status Post(Frame frame, TimePoint deadline) override;
  std::optional<Frame> Poll() override;
  Status status() const override;
  const Capabilities& capabilities() const override;

 private:
  rpc::ServerCall* const call_;
  rpc::RawServerStream* const stream_;
  const std::shared_ptr<GrpcFrames> frames_;
};

}  // namespace cachalot
