// Frame channels over gRPC, both ends in this process: the server end on a thread of its own, the client end
// driven by the test's thread as by a step thread.

#include "common/transport/grpc_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "cachalot/v1/expert.grpc.pb.h"
#include "common/rpc/server.h"

namespace cachalot {
namespace {

using rpc::Loop;
using ::testing::HasSubstr;
using RawService = v1::Expert::WithRawMethod_Dispatch<v1::Expert::Service>;

constexpr char kMethod[] = "/cachalot.v1.Expert/Dispatch";
constexpr Duration kLong = std::chrono::seconds(20);

TimePoint In(Duration time) { return SteadyClock().Now() + time; }

/// Sends every frame back; "close" ends the call, while `paused` nothing is read.
class EchoServer {
 public:
  explicit EchoServer(size_t max_queued = 64) : max_queued_(max_queued) {
    server_.Bidi(loop_, &service_, &RawService::RequestDispatch,
                 [this](rpc::ServerCall& call, rpc::RawServerStream& stream) { return Serve(call, stream); });
    port_ = *server_.Start();
    thread_ = std::thread([this] {
      while (loop_->PollOnce(In(std::chrono::milliseconds(2))) != Loop::Poll::kStopped) Echo();
    });
  }
  ~EchoServer() { Stop(); }
  void Stop() {
    if (!thread_.joinable()) return;
    server_.Shutdown(Duration::zero());
    thread_.join();
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  std::atomic<bool> paused{false};
  std::atomic<int> calls_ended{0};

 private:
  rpc::Task<Status> Serve(rpc::ServerCall& call, rpc::RawServerStream& stream) {
    auto channel = std::make_shared<GrpcServerChannel>(
        &call, &stream, GrpcChannelOptions{.peer = "client", .max_queued_frames = max_queued_});
    channel_ = channel.get();
    auto serving = channel->Serve();
    Status status = co_await std::move(serving);
    channel_ = nullptr;
    ++calls_ended;
    co_return status;
  }
  void Echo() {
    while (channel_ && !paused) {
      if (!held_) held_ = channel_->Poll();
      if (!held_) return;
      if (held_->bytes.size() == 5) return channel_->Close(FailedPrecondition("closed on request"));
      const Status posted = channel_->Post(*held_, In(kLong));
      if (posted.code() == StatusCode::kResourceExhausted) return;  // its queue is full: again when it has sent
      EXPECT_TRUE(posted.ok()) << posted;
      held_.reset();
    }
  }

  const size_t max_queued_;
  RawService service_;
  rpc::Server server_{{.max_message_bytes = kMaxGrpcFrameBytes}};
  Loop* loop_ = server_.AddLoop({.name = "echo"});
  GrpcServerChannel* channel_ = nullptr;  // echo thread
  std::optional<Frame> held_;             // echo thread
  int port_ = 0;
  std::thread thread_;
};

std::unique_ptr<FrameChannel> Open(Loop* loop, const std::string& address, size_t max_queued = 64) {
  return OpenGrpcChannel(loop, rpc::CreateChannel(address, {.max_message_bytes = kMaxGrpcFrameBytes}),
                         kMethod, {.peer = address, .max_queued_frames = max_queued});
}

Frame Pattern(size_t size, int seed) {
  Frame frame;
  frame.bytes.resize(size);
  for (size_t i = 0; i < size; ++i) frame.bytes[i] = static_cast<std::byte>(i * 31 + seed);
  return frame;
}

template <typename Condition>
bool PollUntil(Loop& loop, Condition condition) {
  const TimePoint deadline = In(kLong);
  while (!condition()) {
    if (SteadyClock().Now() > deadline) return false;
    loop.PollOnce(In(std::chrono::milliseconds(20)));
  }
  return true;
}

std::optional<Frame> Receive(Loop& loop, FrameChannel& channel) {
  std::optional<Frame> frame;
  PollUntil(loop, [&] { return (frame = channel.Poll()).has_value() || !channel.status().ok(); });
  return frame;
}

TEST(GrpcTransport, FramesOfEverySizeComeBackWholeAndInOrder) {
  EchoServer server;
  Loop loop;
  const auto channel = Open(&loop, server.address());
  EXPECT_EQ(channel->capabilities().name, "grpc");
  EXPECT_TRUE(channel->capabilities().crosses_hosts);
  const std::vector<size_t> sizes = {1, 48, 1023, 1024, 1025, 8192, 65536, 65537, 3 << 20, 7};
  for (int round = 0; round < 3; ++round) {
    for (size_t size : sizes) ASSERT_TRUE(channel->Post(Pattern(size, round), In(kLong)).ok());
    for (size_t size : sizes) {
      const auto frame = Receive(loop, *channel);
      ASSERT_TRUE(frame) << channel->status();
      EXPECT_EQ(frame->bytes, Pattern(size, round).bytes) << size;
    }
  }
}

TEST(GrpcTransport, LimitsAreKept) {
  Loop loop;
  const auto channel = Open(&loop, "127.0.0.1:1", 2);
  EXPECT_EQ(channel->Post(Pattern(kMaxGrpcFrameBytes + 1, 0), In(kLong)).code(),
            StatusCode::kInvalidArgument);
  EXPECT_TRUE(channel->Post(Pattern(10, 0), In(kLong)).ok());
  EXPECT_TRUE(channel->Post(Pattern(10, 0), In(kLong)).ok());
  EXPECT_EQ(channel->Post(Pattern(10, 0), In(kLong)).code(), StatusCode::kResourceExhausted);
}

TEST(GrpcTransport, NobodyListeningBreaksTheChannelWithThePeersName) {
  Loop loop;
  std::string address;
  { address = EchoServer().address(); }
  const auto channel = Open(&loop, address);
  EXPECT_TRUE(channel->status().ok()) << "connecting";
  ASSERT_TRUE(PollUntil(loop, [&] { return !channel->status().ok(); }));
  EXPECT_EQ(channel->status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(channel->status()), HasSubstr(address));
  EXPECT_EQ(channel->Post(Pattern(1, 0), In(kLong)).code(), StatusCode::kUnavailable);
}

TEST(GrpcTransport, TheServersReasonForEndingReachesTheClientAfterItsLastFrames) {
  EchoServer server;
  Loop loop;
  const auto channel = Open(&loop, server.address());
  ASSERT_TRUE(channel->Post(Pattern(100, 1), In(kLong)).ok());
  ASSERT_TRUE(channel->Post(Pattern(5, 1), In(kLong)).ok());
  ASSERT_TRUE(PollUntil(loop, [&] { return !channel->status().ok(); }));
  EXPECT_EQ(channel->Poll()->bytes, Pattern(100, 1).bytes);
  EXPECT_FALSE(channel->Poll());
  EXPECT_EQ(channel->status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(channel->status()), HasSubstr("closed on request"));
}

TEST(GrpcTransport, AChannelThatIsDroppedEndsTheCall) {
  EchoServer server;
  Loop loop;
  auto channel = Open(&loop, server.address());
  ASSERT_TRUE(channel->Post(Pattern(10, 1), In(kLong)).ok());
  ASSERT_TRUE(Receive(loop, *channel));
  channel.reset();
  EXPECT_TRUE(PollUntil(loop, [&] { return server.calls_ended == 1; }));
  auto again = Open(&loop, server.address());
  ASSERT_TRUE(again->Post(Pattern(10, 2), In(kLong)).ok());
  EXPECT_TRUE(Receive(loop, *again));
}

TEST(GrpcTransport, AChannelMayBeDroppedBeforeItEverRan) {
  EchoServer server;
  Loop loop;
  Open(&loop, server.address()).reset();
  auto posted = Open(&loop, server.address());
  ASSERT_TRUE(posted->Post(Pattern(2000, 1), In(kLong)).ok());
  posted.reset();
  EXPECT_TRUE(PollUntil(loop, [&] { return loop.live_tasks() == 0; }));
}

TEST(GrpcTransport, AChannelMayOutliveItsLoop) {
  EchoServer server;
  auto loop = std::make_unique<Loop>();
  const auto channel = Open(loop.get(), server.address());
  ASSERT_TRUE(channel->Post(Pattern(10, 1), In(kLong)).ok());
  ASSERT_TRUE(Receive(*loop, *channel));
  loop.reset();
  EXPECT_FALSE(channel->status().ok());
}

TEST(GrpcTransport, AServerThatStopsBreaksTheChannel) {
  EchoServer server;
  Loop loop;
  const auto channel = Open(&loop, server.address());
  ASSERT_TRUE(channel->Post(Pattern(10, 1), In(kLong)).ok());
  ASSERT_TRUE(Receive(loop, *channel));
  std::thread stop([&] { server.Stop(); });
  EXPECT_TRUE(PollUntil(loop, [&] { return !channel->status().ok(); }));
  stop.join();
}

TEST(GrpcTransport, AFrameThatIsNotSentInTimeBreaksTheChannel) {
  EchoServer server(1);
  server.paused = true;
  Loop loop;
  const auto channel = Open(&loop, server.address());
  // More than the peer's windows and sockets hold: without a reader the writes stop.
  // On a busy machine the first may be overdue before the last is posted: then posting says so.
  for (int i = 0; i < 8 && channel->status().ok(); ++i)
    (void)channel->Post(Pattern(8 << 20, i), In(std::chrono::milliseconds(300)));
  ASSERT_TRUE(PollUntil(loop, [&] {
    channel->Poll();
    return !channel->status().ok();
  }));
  EXPECT_EQ(channel->status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(channel->status()), HasSubstr("in time"));
}

TEST(GrpcTransport, AReaderThatIsSlowLosesNothing) {
  EchoServer server(2);
  server.paused = true;
  Loop loop;
  const auto channel = Open(&loop, server.address(), 64);
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(channel->Post(Pattern(5000, i), In(kLong)).ok());
  for (int i = 0; i < 20; ++i) loop.PollOnce(In(std::chrono::milliseconds(1)));
  server.paused = false;
  for (int i = 0; i < 40; ++i) {
    const auto frame = Receive(loop, *channel);
    ASSERT_TRUE(frame) << channel->status();
    ASSERT_EQ(frame->bytes, Pattern(5000, i).bytes) << i;
  }
}

}  // namespace
}  // namespace cachalot
