// Ends: of servers with open calls, of loops with open client streams.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>

#include "common/rpc/block_on.h"
#include "common/rpc/client_stream.h"
#include "tests/common/rpc/echo_service.h"
#include "tests/support/idle_peer.h"

namespace cachalot::rpc {
namespace {

using std::chrono::hours;
using std::chrono::seconds;

using Stub = test::Echo::Stub;
using Chat = ClientStream<test::EchoRequest, test::EchoReply>;

struct Client {
  explicit Client(const std::string& address) : stub(test::Echo::NewStub(CreateChannel(address))) {
    loop.Start();
  }
  Loop loop;
  std::unique_ptr<Stub> stub;
};

Task<Status> HoldChat(Loop* loop, Stub* stub, std::promise<void>* opened) {
  Chat chat(loop, {});
  EXPECT_TRUE(co_await chat.Start(stub, &Stub::PrepareAsyncChat));
  test::EchoRequest request;
  request.set_text("x");
  EXPECT_TRUE(co_await chat.Write(request));
  test::EchoReply reply;
  EXPECT_TRUE(co_await chat.Read(&reply));
  opened->set_value();
  EXPECT_FALSE(co_await chat.Read(&reply));
  co_return co_await chat.Finish();
}

TEST(ServerShutdown, CancelsOpenStreamsAtTheEndOfTheGrace) {
  EchoServer server;
  ASSERT_TRUE(server.Start().ok());
  Client client(server.address());
  std::promise<void> opened;
  auto held = std::async(std::launch::async, [&] {
    return BlockOn(&client.loop, HoldChat(&client.loop, client.stub.get(), &opened), seconds(30), "chat");
  });
  opened.get_future().wait();
  server.Shutdown(std::chrono::milliseconds(1));
  EXPECT_FALSE(held.get().ok());
  EXPECT_EQ(server.open, 0);
}

Task<Status> EndChat(Loop* loop, Stub* stub, std::promise<void>* opened, Event* go) {
  Chat chat(loop, {});
  EXPECT_TRUE(co_await chat.Start(stub, &Stub::PrepareAsyncChat));
  test::EchoRequest request;
  request.set_text("x");
  EXPECT_TRUE(co_await chat.Write(request));
  test::EchoReply reply;
  EXPECT_TRUE(co_await chat.Read(&reply));
  opened->set_value();
  EXPECT_TRUE(co_await go->WaitUntil(TimePoint::max()));
  EXPECT_TRUE(co_await chat.Write(request));
  EXPECT_TRUE(co_await chat.Read(&reply));
  EXPECT_TRUE(co_await chat.WritesDone());
  co_return co_await chat.Finish();
}

/// Shuts `server` down while a stream is open, which ends well by itself.
void ShutDownAroundAStream(EchoServer& server) {
  Client client(server.address());
  Event go(&client.loop);
  std::promise<void> opened;
  auto ended = std::async(std::launch::async, [&] {
    return BlockOn(&client.loop, EndChat(&client.loop, client.stub.get(), &opened, &go), seconds(30), "chat");
  });
  opened.get_future().wait();
  auto shutdown = std::async(std::launch::async, [&] { server.Shutdown(hours(1)); });
  client.loop.Post([&] { go.Set(); });
  EXPECT_TRUE(ended.get().ok());
  shutdown.get();
}

TEST(ServerShutdown, LetsOpenStreamsEndWithinTheGrace) {
  EchoServer server;
  ASSERT_TRUE(server.Start().ok());
  ShutDownAroundAStream(server);
}

TEST(ServerShutdown, ClosesIdleConnectionsWithoutWaitingForThem) {
  EchoServer server;
  ASSERT_TRUE(server.Start().ok());
  cachalot::testing::IdlePeer idle(server.address());
  server.Shutdown(hours(1));
  EXPECT_TRUE(idle.IsCut());
}

TEST(ServerShutdown, ClosesIdleConnectionsWhenTheLastCallEnds) {
  EchoServer server;
  ASSERT_TRUE(server.Start().ok());
  cachalot::testing::IdlePeer idle(server.address());
  ShutDownAroundAStream(server);
  EXPECT_TRUE(idle.IsCut());
}

TEST(LoopShutdown, CancelsTheLoopsOpenClientStreams) {
  EchoServer server;
  ASSERT_TRUE(server.Start().ok());
  std::promise<Status> result;
  {
    Client client(server.address());
    std::promise<void> opened;
    std::thread other([&] {
      result.set_value(
          BlockOn(&client.loop, HoldChat(&client.loop, client.stub.get(), &opened), seconds(30), "chat"));
    });
    opened.get_future().wait();
    client.loop.Shutdown(Duration::zero());
    EXPECT_TRUE(client.loop.Join(client.loop.Now() + seconds(20)));
    other.join();
  }
  EXPECT_EQ(result.get_future().get().code(), StatusCode::kCancelled);
  EXPECT_TRUE(Eventually([&] { return server.open == 0; }));
}

TEST(ServerShutdown, IsSafeWithoutStart) {
  EchoServer server;
  server.Shutdown(Duration::zero());
  server.Shutdown(Duration::zero());
}

}  // namespace
}  // namespace cachalot::rpc
