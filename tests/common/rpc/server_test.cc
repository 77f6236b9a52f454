#include "common/rpc/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/rpc/block_on.h"
#include "common/rpc/client.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/slices.h"
#include "tests/common/rpc/echo_service.h"

namespace cachalot::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;

using Stub = test::Echo::Stub;
using Chat = ClientStream<test::EchoRequest, test::EchoReply>;

test::EchoRequest Request(const std::string& text, int count = 0) {
  test::EchoRequest request;
  request.set_text(text);
  request.set_count(count);
  return request;
}

class ServerTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_.Start().ok());
    loop_.Start();
    channel_ = CreateChannel(server_.address(), {.max_message_bytes = 8 << 20});
    stub_ = test::Echo::NewStub(channel_);
  }

  StatusOr<test::EchoReply> Say(const std::string& text, CallOptions options = {}) {
    if (options.deadline == TimePoint::max()) options.deadline = loop_.Now() + seconds(20);
    return BlockOn(&loop_,
                   UnaryCall(&loop_, stub_.get(), &Stub::PrepareAsyncSay, Request(text), std::move(options)),
                   seconds(30), "Say");
  }
  template <typename T>
  auto Run(Task<T> task) {
    return BlockOn(&loop_, std::move(task), seconds(30), "the test's task");
  }

  EchoServer server_{{.max_message_bytes = 8 << 20}};
  Loop loop_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Stub> stub_;
};

TEST_F(ServerTest, Unary) {
  EXPECT_EQ(Say("hello")->text(), "hello");
  EXPECT_EQ(Say("hello")->index(), 1);  // the deadline arrived
  EXPECT_EQ(Say("fail").status(), NotFound("no echo here"));
  EXPECT_EQ(Say("meta", {.metadata = {{"x-test", "value"}}})->text(), "value");
  EXPECT_EQ(Say("meta")->text(), "none");
}

TEST_F(ServerTest, AUnaryDeadlineReachesTheHandler) {
  EXPECT_EQ(Say("hold", {.deadline = loop_.Now() + milliseconds(20)}).status().code(),
            StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(Eventually([&] { return server_.cancelled == 1 && server_.open == 0; }));
}

TEST_F(ServerTest, AScopeCancelsAUnaryCall) {
  CancelScope scope;
  std::thread other([&] {
    EXPECT_TRUE(Eventually([&] { return server_.open == 1; }));
    loop_.Post([&] { scope.Cancel(); });
  });
  EXPECT_EQ(Say("hold", {.scope = &scope}).status().code(), StatusCode::kCancelled);
  other.join();
  EXPECT_TRUE(Eventually([&] { return server_.cancelled == 1 && server_.open == 0; }));
}

TEST_F(ServerTest, ALongMessageIsRefused) {
  EXPECT_EQ(Say(std::string(9 << 20, 'x')).status().code(), StatusCode::kResourceExhausted);
}

Task<std::vector<int>> CountTo(Loop* loop, Stub* stub, int count, Status* status) {
  ClientReader<test::EchoReply> stream(loop, {.deadline = loop->Now() + seconds(20)});
  std::vector<int> indices;
  test::EchoReply reply;
  if (co_await stream.Start(stub, &Stub::PrepareAsyncCount, Request("", count))) {
    while (co_await stream.Read(&reply)) indices.push_back(reply.index());
  }
  *status = co_await stream.Finish();
  EXPECT_FALSE(co_await stream.Read(&reply));    // dead
  EXPECT_EQ(co_await stream.Finish(), *status);  // the same again
  co_return indices;
}

TEST_F(ServerTest, ServerStreaming) {
  Status status = Internal("");
  EXPECT_THAT(Run(CountTo(&loop_, stub_.get(), 4, &status)).value(), ElementsAre(0, 1, 2, 3));
  EXPECT_TRUE(status.ok()) << status;
}

Task<Status> ReadOneAndCancel(Loop* loop, Stub* stub, std::string mode) {
  ClientReader<test::EchoReply> stream(loop, {});
  EXPECT_TRUE(co_await stream.Start(stub, &Stub::PrepareAsyncCount, Request(mode)));
  test::EchoReply reply;
  EXPECT_TRUE(co_await stream.Read(&reply));
  stream.TryCancel();
  while (co_await stream.Read(&reply)) {
  }
  co_return co_await stream.Finish();
}

TEST_F(ServerTest, TheHandlerSeesACancelledStream) {
  EXPECT_EQ(Run(ReadOneAndCancel(&loop_, stub_.get(), "")).code(),
            StatusCode::kCancelled);  // its write fails
  EXPECT_EQ(Run(ReadOneAndCancel(&loop_, stub_.get(), "one")).code(),
            StatusCode::kCancelled);  // it waits, not writes
  EXPECT_TRUE(Eventually([&] { return server_.cancelled == 2 && server_.open == 0; }));
}

Task<std::vector<std::string>> ChatAll(Loop* loop, Stub* stub, std::vector<std::string> lines,
                                       Status* status) {
  Chat chat(loop, {.deadline = loop->Now() + seconds(20)});
  std::vector<std::string> replies;
  EXPECT_TRUE(co_await chat.Start(stub, &Stub::PrepareAsyncChat));
  test::EchoReply reply;
  for (const std::string& line : lines) {
    const test::EchoRequest request = Request(line);
    if (!co_await chat.Write(request) || !co_await chat.Read(&reply)) break;
    replies.push_back(reply.text());
  }
  co_await chat.WritesDone();
  while (co_await chat.Read(&reply)) replies.push_back("late " + reply.text());
  *status = co_await chat.Finish();
  co_return replies;
}

TEST_F(ServerTest, Bidi) {
  Status status = Internal("");
  EXPECT_THAT(Run(ChatAll(&loop_, stub_.get(), {"a", "b", "c"}, &status)).value(),
              ElementsAre("a", "b", "c"));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(Run(ChatAll(&loop_, stub_.get(), {"a", "end", "c"}, &status)).value(), ElementsAre("a"));
  EXPECT_EQ(status, Aborted("as asked"));
}

Task<void> ReadReplies(Chat* chat, std::vector<std::string>* replies) {
  test::EchoReply reply;
  while (co_await chat->Read(&reply)) replies->push_back(reply.text());
}

Task<int> ChatBothWays(Loop* loop, Stub* stub, int count) {
  Chat chat(loop, {.deadline = loop->Now() + seconds(20)});
  EXPECT_TRUE(co_await chat.Start(stub, &Stub::PrepareAsyncChat));
  std::vector<std::string> replies;
  TaskGroup group(loop);
  group.Spawn(ReadReplies(&chat, &replies), "reader");
  for (int i = 0; i < count; ++i) {
    const test::EchoRequest request = Request(std::to_string(i));
    EXPECT_TRUE(co_await chat.Write(request));
  }
  EXPECT_TRUE(co_await chat.WritesDone());
  EXPECT_TRUE(co_await group.Join(loop->Now() + seconds(20)));
  EXPECT_TRUE((co_await chat.Finish()).ok());
  int in_order = 0;
  for (const std::string& reply : replies) in_order += reply == std::to_string(in_order);
  co_return in_order;
}

TEST_F(ServerTest, ReadsAndWritesRunBesideEachOther) {
  EXPECT_EQ(Run(ChatBothWays(&loop_, stub_.get(), 200)).value(), 200);
}

Task<Status> UseDeadStreams(Loop* loop, Stub* stub) {
  Chat never(loop, {});
  test::EchoReply reply;
  const test::EchoRequest request = Request("x");
  EXPECT_FALSE(co_await never.Read(&reply));
  EXPECT_FALSE(co_await never.Write(request));
  EXPECT_FALSE(co_await never.WritesDone());
  EXPECT_EQ((co_await never.Finish()).code(), StatusCode::kCancelled);
  Chat chat(loop, {.deadline = loop->Now() + seconds(20)});
  co_await chat.Start(stub, &Stub::PrepareAsyncChat);
  EXPECT_FALSE(co_await chat.Read(&reply));
  EXPECT_FALSE(co_await chat.Write(request));
  EXPECT_FALSE(co_await chat.WritesDone());
  co_return co_await chat.Finish();
}

TEST_F(ServerTest, EveryOperationIsSafeOnADeadStream) {
  auto nobody = test::Echo::NewStub(CreateChannel("unix:/nonexistent/socket"));
  EXPECT_EQ(Run(UseDeadStreams(&loop_, nobody.get())).code(), StatusCode::kUnavailable);
}

Task<size_t> EchoFrames(Loop* loop, std::shared_ptr<grpc::Channel> channel, std::vector<size_t> sizes) {
  RawClientStream stream(loop, {.deadline = loop->Now() + seconds(20)});
  EXPECT_TRUE(co_await stream.StartRaw(channel, "/cachalot.rpc.test.Echo/Frames"));
  size_t good = 0;
  for (const size_t size : sizes) {
    auto payload = std::make_shared<std::vector<uint32_t>>(size / 4);
    std::iota(payload->begin(), payload->end(), 1u);
    const uint64_t header = size;
    const grpc::ByteBuffer frame = FrameBuilder()
                                       .Copy(std::as_bytes(std::span(&header, 1)))
                                       .Share(std::as_bytes(std::span(*payload)), payload)
                                       .Build();
    if (!co_await stream.Write(frame)) break;
    grpc::ByteBuffer back;
    if (!co_await stream.Read(&back)) break;
    FrameCursor cursor(back);
    uint64_t got_header = 0;
    std::vector<uint32_t> got(size / 4);
    cursor.Read(&got_header);
    cursor.Read(std::as_writable_bytes(std::span(got)));
    good += cursor.ok() && cursor.remaining() == 0 && got_header == size && got == *payload;
  }
  co_await stream.WritesDone();
  EXPECT_TRUE((co_await stream.Finish()).ok());
  co_return good;
}

TEST_F(ServerTest, RawFramesOnAPolledLoop) {
  EXPECT_EQ(Run(EchoFrames(&loop_, channel_, {0, 64, 4096, 65536, 3 << 20})).value(), 5u);
}

Task<Status> StartAndRead(Loop* loop, Stub* stub, test::EchoReply* reply) {
  ClientReader<test::EchoReply> stream(loop, {.deadline = loop->Now() + seconds(20)});
  EXPECT_TRUE(co_await stream.Start(stub, &Stub::PrepareAsyncCount, Request("accepted", 1)));
  EXPECT_TRUE(co_await stream.Read(reply));
  co_return co_await stream.Finish();
}

TEST_F(ServerTest, InitialMetadataMayBeSentFirst) {
  test::EchoReply reply;
  EXPECT_TRUE(Run(StartAndRead(&loop_, stub_.get(), &reply)).ok());
}

TEST_F(ServerTest, ManyCallsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 25; ++i) good += Say("x").ok();
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 200);
}

TEST_F(ServerTest, WaitConnectedSucceedsOrNamesTheTarget) {
  EXPECT_TRUE(Run(WaitConnected(&loop_, channel_, "echo", loop_.Now() + seconds(20))).ok());
  auto nobody = CreateChannel("unix:/nonexistent/socket");
  const Status late = Run(WaitConnected(&loop_, nobody, "nobody:1", loop_.Now() + milliseconds(10)));
  EXPECT_EQ(late.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(StatusMessage(late), HasSubstr("nobody:1"));
}

TEST_F(ServerTest, AChannelReconnectsToARestartedServer) {
  ASSERT_TRUE(Say("x").ok());
  const std::string address = server_.address();
  server_.Shutdown(Duration::zero());
  EXPECT_EQ(Say("x").status().code(), StatusCode::kUnavailable);
  EchoServer second({.listen = address});
  ASSERT_TRUE(second.Start().ok());
  EXPECT_TRUE(Say("x", {.wait_for_ready = true}).ok());
}

TEST(ServerStart, APortInUseIsUnavailable) {
  EchoServer first;
  ASSERT_TRUE(first.Start().ok());
  EchoServer second({.listen = first.address()});
  const Status status = second.Start();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr(first.address() + ": Address already in use"));
}

TEST(ServerStart, ABadAddressIsInvalid) {
  for (const char* listen : {"nonsense", "127.0.0.1:port", "not a host:0"}) {
    EchoServer server({.listen = listen});
    const Status status = server.Start();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(StatusMessage(status), HasSubstr(listen));
  }
}

}  // namespace
}  // namespace cachalot::rpc
