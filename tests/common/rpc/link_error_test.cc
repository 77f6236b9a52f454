// Whose error a call ends with: the handler's or the link's.

#include <gtest/gtest.h>

#include "common/rpc/block_on.h"
#include "common/rpc/client.h"
#include "tests/common/rpc/echo_service.h"
#include "tests/support/link_proxy.h"

namespace cachalot::testing {
namespace {

using std::chrono::seconds;

StatusOr<rpc::test::EchoReply> Say(rpc::Loop* loop, rpc::test::Echo::Stub* stub, const std::string& text) {
  rpc::test::EchoRequest request;
  request.set_text(text);
  return rpc::BlockOn(loop,
                      rpc::UnaryCall(loop, stub, &rpc::test::Echo::Stub::PrepareAsyncSay, request,
                                     {.deadline = loop->Now() + seconds(20), .wait_for_ready = true}),
                      seconds(30), "Say");
}

TEST(LinkError, ACorruptLinkIsUnavailableAndNoBugOfThePeer) {
  rpc::EchoServer server;
  ASSERT_TRUE(server.Start().ok());
  rpc::Loop loop;
  loop.Start();
  for (const Way way : {Way::kToClient, Way::kToServer}) {
    const auto link = LinkProxy::Listen(server.address());
    ASSERT_TRUE(link.ok()) << link.status();
    const auto stub = rpc::test::Echo::NewStub(rpc::CreateChannel((*link)->address()));
    EXPECT_EQ(Say(&loop, stub.get(), "hello").status(), OkStatus());
    EXPECT_EQ(Say(&loop, stub.get(), "bug").status(), Internal("a bug of the handler"));
    (*link)->Set({.kind = LinkFault::Kind::kFlipChunk, .way = way});
    // gRPC says INTERNAL or UNKNOWN here, as if the peer had a bug that another peer would have too.
    EXPECT_EQ(Say(&loop, stub.get(), "hello").status().code(), StatusCode::kUnavailable);
    EXPECT_TRUE((*link)->WaitStruck(Duration::zero()));
    // The end of the old connection may take a moment to arrive.
    EXPECT_TRUE(rpc::Eventually([&] { return Say(&loop, stub.get(), "hello").ok(); }));
  }
}

}  // namespace
}  // namespace cachalot::testing
