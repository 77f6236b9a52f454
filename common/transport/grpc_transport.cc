#include "common/transport/grpc_transport.h"

#include <deque>
#include <functional>

#include "common/base/check.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/event.h"
#include "common/rpc/slices.h"

namespace cachalot {

using rpc::Task;

namespace {

constexpr Duration kFlushTime = std::chrono::seconds(1);
constexpr size_t kCopyBelow =
    1024;  // sharing a frame's memory with gRPC costs more than copying so few bytes

grpc::ByteBuffer ToGrpcFrame(std::vector<std::byte> bytes) {
  if (bytes.size() < kCopyBelow) return rpc::CopyFrame(bytes);
  const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  return rpc::FrameBuilder().Share(*owner, owner).Build();
}

/// A coroutine that runs at once, in its caller, until it first has to wait: a Task would start with the
/// loop's next turn, and a posted frame would leave only when its sender has finished computing.
struct Eager {
  struct promise_type {
    Eager get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };
};

}  // namespace

/// The two queues of a stream, shared by the channel's object and the tasks that serve the stream.
class GrpcFrames {
 public:
  GrpcFrames(rpc::Loop* owner, GrpcChannelOptions o) : loop(owner), options(std::move(o)), changed(owner) {
    capabilities = {.name = "grpc",
                    .crosses_processes = true,
                    .crosses_hosts = true,
                    .max_frame_bytes = options.max_frame_bytes};
  }

  Status Post(Frame frame, TimePoint deadline) {
    CheckSendDeadline();
    if (!status.ok()) return status;
    if (frame.bytes.size() > options.max_frame_bytes)
      return InvalidArgument("frame of " + std::to_string(frame.bytes.size()) + " bytes, at most " +
                             std::to_string(options.max_frame_bytes));
    if (out.size() >= options.max_queued_frames)
      return ResourceExhausted(std::to_string(out.size()) + " frames wait to be sent to " + options.peer);
    out.push_back({ToGrpcFrame(std::move(frame.bytes)), deadline});
    Pump();
    return OkStatus();
  }

  std::optional<Frame> Poll() {
    CheckSendDeadline();
    if (in.empty()) return std::nullopt;
    std::optional<Frame> frame(std::move(in.front()));
    in.pop_front();
    if (in.size() + 1 == options.max_queued_frames) changed.Set();  // the reader waits for room
    return frame;
  }

  /// The first reason stays.
  void Break(const Status& why) {
    if (!status.ok()) return;
    status = why;
    out.clear();
    if (cancel) cancel();
    changed.Set();
  }

  void CheckSendDeadline() {
    if (!status.ok() || (!writing && out.empty())) return;
    if ((writing ? in_flight : out.front()).deadline <= loop->Now())
      Break(Unavailable("a frame could not be sent to " + options.peer + " in time"));
  }

  void Pump() {
    if (start_writing && !writing && !write_failed && !out.empty()) start_writing();
  }

  void Received(const grpc::ByteBuffer& message) {
    rpc::FrameCursor cursor(message);
    const size_t size = cursor.remaining();
    Frame frame;
    frame.bytes.reserve(size);
    const bool read = cursor.Visit(size, [&](std::span<const std::byte> piece) {
      frame.bytes.insert(frame.bytes.end(), piece.begin(), piece.end());
    });
    if (!read) return Break(Unavailable("a frame from " + options.peer + " could not be read"));
    in.push_back(std::move(frame));
  }

  struct Outgoing {
    grpc::ByteBuffer bytes;
    TimePoint deadline;
  };

  rpc::Loop* const loop;
  const GrpcChannelOptions options;
  Capabilities capabilities;
  std::deque<Frame> in;
  std::deque<Outgoing> out;
  Outgoing in_flight;
  bool writing = false, write_failed = false, reading_ended = false;
  Status status;                        // why the channel broke
  std::optional<Status> close_with;     // server: Close was called
  std::function<void()> start_writing;  // while the stream can be written
  std::function<void()> cancel;         // while the stream lives: its operations fail soon
  rpc::Event changed;                   // anything that the stream's tasks wait for
};

namespace {

/// co_await Change(frames): after the next change, at `until`, or at once when the loop's grace has ended.
rpc::Event::Wait Change(GrpcFrames& frames, TimePoint until = TimePoint::max()) {
  frames.changed.Reset();
  return frames.changed.WaitUntil(until);
}

template <typename Stream>
Eager WriteFrames(std::shared_ptr<GrpcFrames> frames, Stream* stream) {
  frames->writing = true;
  while (frames->status.ok() && !frames->write_failed && !frames->out.empty()) {
    frames->in_flight = std::move(frames->out.front());
    frames->out.pop_front();
    auto write = stream->Write(frames->in_flight.bytes);
    // Why it failed is known when the call's status comes.
    if (!co_await write) frames->write_failed = true;
  }
  frames->in_flight = {};
  frames->writing = false;
  frames->changed.Set();
}

template <typename Stream>
Task<void> ReadFrames(std::shared_ptr<GrpcFrames> frames, Stream* stream) {
  const size_t room = frames->options.max_queued_frames;
  while (frames->status.ok()) {
    if (frames->in.size() >= room && !frames->write_failed && !frames->loop->draining()) {
      auto change = Change(*frames);
      co_await change;
      continue;
    }
    grpc::ByteBuffer message;
    auto read = stream->Read(&message);
    if (!co_await read) break;
    frames->Received(message);
  }
  frames->reading_ended = true;
  frames->changed.Set();
}

/// The stream must not go while a write points into it. The call has ended, so the write ends soon.
Task<void> WaitWritten(std::shared_ptr<GrpcFrames> frames) {
  while (frames->writing) {
    if (frames->loop->draining()) {
      co_await rpc::Yield(frames->loop);
    } else {
      auto change = Change(*frames);
      co_await change;
    }
  }
}

Task<void> RunClient(std::shared_ptr<GrpcFrames> frames, std::shared_ptr<grpc::Channel> channel,
                     std::string method) {
  rpc::RawClientStream stream(frames->loop, {.metadata = frames->options.metadata});
  frames->cancel = [&stream] { stream.TryCancel(); };
  if (!frames->status.ok()) stream.TryCancel();  // the channel was closed before this ran
  auto start = stream.StartRaw(channel, method);
  if (co_await std::move(start)) {
    GrpcFrames* raw = frames.get();
    frames->start_writing = [&frames, &stream] { WriteFrames(frames, &stream); };
    raw->Pump();
    auto reading = ReadFrames(frames, &stream);
    co_await std::move(reading);
  }
  auto finish = stream.Finish();
  const Status ended = co_await std::move(finish);
  frames->start_writing = nullptr;
  frames->cancel = nullptr;
  frames->Break(ended.ok() ? Unavailable(frames->options.peer + " ended the stream")
                           : Annotate(ended, "stream to " + frames->options.peer));
  auto written = WaitWritten(frames);
  co_await std::move(written);
}

class GrpcClientChannel final : public FrameChannel {
 public:
  explicit GrpcClientChannel(std::shared_ptr<GrpcFrames> frames) : frames_(std::move(frames)) {}
  ~GrpcClientChannel() override { frames_->Break(Cancelled("the channel was closed here")); }

  Status Post(Frame frame, TimePoint deadline) override { return frames_->Post(std::move(frame), deadline); }
  std::optional<Frame> Poll() override { return frames_->Poll(); }
  Status status() const override { return frames_->status; }
  const Capabilities& capabilities() const override { return frames_->capabilities; }

 private:
  const std::shared_ptr<GrpcFrames> frames_;
};

}  // namespace

std::unique_ptr<FrameChannel> OpenGrpcChannel(rpc::Loop* loop, std::shared_ptr<grpc::Channel> channel,
                                              std::string method, GrpcChannelOptions options) {
  auto frames = std::make_shared<GrpcFrames>(loop, std::move(options));
  if (!loop->Spawn(RunClient(frames, std::move(channel), std::move(method)), "frame stream"))
    frames->Break(Unavailable("the loop " + loop->name() + " has stopped"));
  return std::make_unique<GrpcClientChannel>(std::move(frames));
}

GrpcServerChannel::GrpcServerChannel(rpc::ServerCall* call, rpc::RawServerStream* stream,
                                     GrpcChannelOptions options)
    : call_(call), stream_(stream), frames_(std::make_shared<GrpcFrames>(call->loop(), std::move(options))) {}

GrpcServerChannel::~GrpcServerChannel() = default;

Task<Status> GrpcServerChannel::Serve() {
  const std::shared_ptr<GrpcFrames> frames = frames_;
  rpc::CancelCallback on_cancel(&call_->scope(), [raw = frames.get()] { raw->changed.Set(); });
  frames->cancel = [this] { call_->TryCancel(); };
  frames->start_writing = [this] { WriteFrames(frames_, stream_); };
  frames->Pump();
  call_->tasks().Spawn(ReadFrames(frames, stream_), "frame reader");

  const auto over = [&] { return !frames->status.ok() || call_->is_cancelled() || frames->loop->draining(); };
  while (!over() && !frames->reading_ended && !frames->close_with) {
    auto change = Change(*frames);
    co_await change;
  }
  const TimePoint flush_end = frames->loop->Now() + kFlushTime;
  while (!over() && !frames->write_failed && (frames->writing || !frames->out.empty()) &&
         frames->loop->Now() < flush_end) {
    auto change = Change(*frames, flush_end);
    co_await change;
  }
  frames->start_writing = nullptr;
  if (frames->writing) call_->TryCancel();
  frames->cancel = nullptr;
  frames->Break(Unavailable("the call of " + frames->options.peer + " has ended"));
  auto written = WaitWritten(frames);
  co_await std::move(written);
  co_return frames->close_with.value_or(OkStatus());
}

void GrpcServerChannel::Close(const Status& status) {
  if (frames_->close_with) return;
  frames_->close_with = status;
  frames_->changed.Set();
}

Status GrpcServerChannel::Post(Frame frame, TimePoint deadline) {
  return frames_->Post(std::move(frame), deadline);
}
std::optional<Frame> GrpcServerChannel::Poll() { return frames_->Poll(); }
Status GrpcServerChannel::status() const { return frames_->status; }
const Capabilities& GrpcServerChannel::capabilities() const { return frames_->capabilities; }

}  // namespace cachalot
