// The proxy that breaks links, against an echo server of this process.

#include "tests/support/link_proxy.h"

#include <gtest/gtest.h>

#include <array>
#include <boost/asio.hpp>
#include <mutex>
#include <optional>
#include <thread>

#include "common/process/child_process.h"

namespace cachalot::testing {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Kind = LinkFault::Kind;

constexpr Duration kSoon = std::chrono::seconds(10);
constexpr Duration kNever = std::chrono::milliseconds(100);  // nothing may come for so long

std::string AddressOf(const tcp::endpoint& endpoint) {
  return "127.0.0.1:" + std::to_string(endpoint.port());
}

/// Sends back what it gets, behind `prefix` at the start of a connection.
class EchoServer {
 public:
  explicit EchoServer(std::string prefix = "") : prefix_(std::move(prefix)) {
    Accept();
    thread_ = std::thread([this] { io_.run(); });
  }
  ~EchoServer() {
    io_.stop();
    thread_.join();
  }
  std::string address() { return AddressOf(acceptor_.local_endpoint()); }

 private:
  struct Peer {
    explicit Peer(tcp::socket s) : socket(std::move(s)) {}
    tcp::socket socket;
    std::array<char, 4096> buffer{};
  };

  void Accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (error) return;
      auto peer = std::make_shared<Peer>(std::move(socket));
      asio::write(peer->socket, asio::buffer(prefix_), error);
      Read(peer);
      Accept();
    });
  }
  void Read(const std::shared_ptr<Peer>& peer) {
    peer->socket.async_read_some(asio::buffer(peer->buffer), [this, peer](error_code error, size_t size) {
      if (error) return;
      asio::write(peer->socket, asio::buffer(peer->buffer.data(), size), error);
      Read(peer);
    });
  }

  const std::string prefix_;
  asio::io_context io_;
  tcp::acceptor acceptor_{io_, {asio::ip::address_v4::loopback(), 0}};
  std::thread thread_;
};

class Caller {
 public:
  explicit Caller(const LinkProxy& proxy) {
    const std::string& at = proxy.address();
    const size_t colon = at.rfind(':');
    const auto port = static_cast<uint16_t>(std::stoul(at.substr(colon + 1)));
    socket_.connect({asio::ip::make_address_v4(at.substr(0, colon)), port}, error_);
  }

  const error_code& error() const { return error_; }
  void Send(const std::string& text) { asio::write(socket_, asio::buffer(text), error_); }

  /// `size` bytes, or what came until the time was up or the connection ended (then error() is set).
  std::string Receive(size_t size, Duration at_most) {
    std::string text(size, 0);
    std::optional<size_t> got;
    asio::async_read(socket_, asio::buffer(text), [&](error_code error, size_t count) {
      got = count;
      if (error != asio::error::operation_aborted) error_ = error;
    });
    io_.restart();
    io_.run_for(at_most);
    if (!got) {
      socket_.cancel();
      io_.restart();
      io_.run();
    }
    text.resize(*got);
    return text;
  }
  std::string Echo(const std::string& text) {
    Send(text);
    return Receive(text.size(), kSoon);
  }

 private:
  asio::io_context io_;
  tcp::socket socket_{io_};
  error_code error_;
};

std::unique_ptr<LinkProxy> MustListen(const std::string& target, std::vector<std::string> marks = {}) {
  auto proxy = LinkProxy::Listen(target, std::move(marks));
  EXPECT_TRUE(proxy.ok()) << proxy.status();
  return proxy.ok() ? std::move(*proxy) : nullptr;
}

TEST(LinkProxy, PassesBytesAndCountsThem) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  const std::string large(100'000, 'x');  // several chunks, and less than sockets take when nobody reads
  {
    Caller caller(*proxy);
    EXPECT_EQ(caller.Echo("hello"), "hello");
    EXPECT_EQ(caller.Echo(large), large);
    EXPECT_EQ(proxy->counters().open, 1);
  }
  Caller other(*proxy);
  EXPECT_EQ(other.Echo("again"), "again");
  const LinkCounters n = proxy->counters();
  EXPECT_EQ(n.accepted, 2);
  EXPECT_EQ(n.to_server, static_cast<int64_t>(large.size()) + 10);
  EXPECT_EQ(n.to_client, n.to_server);
  EXPECT_EQ(n.strikes, 0);
}

TEST(LinkProxy, HeldBytesArriveAfterHealing) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller old(*proxy);
  EXPECT_EQ(old.Echo("ab"), "ab");
  proxy->Set({.kind = Kind::kHold});
  EXPECT_TRUE(proxy->WaitStruck(Duration::zero())) << "there was a connection: at once";
  old.Send("cd");
  Caller later(*proxy);
  EXPECT_FALSE(later.error()) << "a black hole accepts";
  later.Send("ef");
  EXPECT_EQ(old.Receive(1, kNever), "");
  EXPECT_EQ(later.Receive(1, kNever), "");
  proxy->Heal();
  EXPECT_EQ(old.Receive(2, kSoon), "cd");
  EXPECT_EQ(later.Receive(2, kSoon), "ef");
}

TEST(LinkProxy, HoldsBehindAByteOfOneDirection) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  proxy->Set({.kind = Kind::kHold, .way = Way::kToClient, .after_bytes = 3});
  Caller caller(*proxy);
  caller.Send("abcdef");
  EXPECT_EQ(caller.Receive(6, kNever), "abc");
  EXPECT_TRUE(proxy->WaitStruck(kSoon));
  EXPECT_EQ(proxy->counters().to_server, 6);
  proxy->Heal();
  EXPECT_EQ(caller.Receive(3, kSoon), "def");
}

TEST(LinkProxy, AHeldEndIsSeenAfterHealingOnly) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  auto caller = std::make_unique<Caller>(*proxy);
  EXPECT_EQ(caller->Echo("a"), "a");
  proxy->Set({.kind = Kind::kHold});
  caller.reset();
  Caller other(*proxy);  // accepted behind the end of the first in the proxy's order
  EXPECT_EQ(other.Receive(1, kNever), "");
  EXPECT_EQ(proxy->counters().open, 2) << "nobody was told";
  proxy->Heal();
  EXPECT_EQ(other.Echo("b"), "b");
}

TEST(LinkProxy, HoldMaySpareNewConnections) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller old(*proxy);
  EXPECT_EQ(old.Echo("a"), "a");
  proxy->Set({.kind = Kind::kHold, .spare_new = true});
  Caller later(*proxy);
  EXPECT_EQ(later.Echo("b"), "b");
  old.Send("c");
  EXPECT_EQ(old.Receive(1, kNever), "");
}

TEST(LinkProxy, CutsAfterSoManyBytesAndThenPasses) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller one(*proxy), two(*proxy);
  EXPECT_EQ(two.Echo("x"), "x");
  proxy->Set({.kind = Kind::kCut, .way = Way::kToServer, .after_bytes = 4});
  EXPECT_EQ(one.Echo("ab"), "ab");
  EXPECT_EQ(one.Echo("cd"), "cd") << "the fourth byte is the last that passes";
  one.Send("e");
  EXPECT_TRUE(proxy->WaitStruck(kSoon));
  for (Caller* caller : {&one, &two}) {
    EXPECT_EQ(caller->Receive(1, kSoon), "");
    EXPECT_EQ(caller->error(), asio::error::connection_reset);
  }
  Caller three(*proxy);
  EXPECT_EQ(three.Echo("fghijk"), "fghijk");
  EXPECT_EQ(proxy->counters().resets, 2);
  EXPECT_EQ(proxy->counters().strikes, 1);
}

TEST(LinkProxy, CutsConnectionsThatAreOlderThanAChildOfThisProcess) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller caller(*proxy);
  EXPECT_EQ(caller.Echo("a"), "a");
  const auto child = ChildProcess::Spawn({.argv = {"sleep", "60"}});
  ASSERT_TRUE(child.ok()) << child.status();
  proxy->Set({.kind = Kind::kCut});
  EXPECT_EQ(caller.Receive(1, kSoon), "");
  EXPECT_EQ(caller.error(), asio::error::connection_reset);
}

TEST(LinkProxy, RefusesUntilHealed) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller old(*proxy);
  EXPECT_EQ(old.Echo("a"), "a");
  proxy->Set({.kind = Kind::kRefuse});
  EXPECT_EQ(old.Receive(1, kSoon), "");
  EXPECT_TRUE(old.error());
  Caller refused(*proxy);
  EXPECT_EQ(refused.error(), asio::error::connection_refused);
  proxy->Heal();
  Caller later(*proxy);
  EXPECT_EQ(later.Echo("b"), "b");
}

TEST(LinkProxy, FlipsOneByte) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller caller(*proxy);
  EXPECT_EQ(caller.Echo("0"), "0");
  proxy->Set({.kind = Kind::kFlip, .way = Way::kToServer, .after_bytes = 2, .mask = 0x20});
  EXPECT_EQ(caller.Echo("abcde"), "abCde");
  EXPECT_EQ(caller.Echo("abcde"), "abcde") << "once";
  proxy->Set({.kind = Kind::kFlip, .way = Way::kToClient, .mask = 0x20});
  EXPECT_EQ(caller.Echo("abcde"), "Abcde");
}

TEST(LinkProxy, FlipsTheFirstByteOfAChunk) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller caller(*proxy);
  proxy->Set({.kind = Kind::kFlipChunk, .way = Way::kToServer, .after_bytes = 2, .mask = 0x20});
  EXPECT_EQ(caller.Echo("abcde"), "abcde") << "the third byte is in the midst of its chunk";
  EXPECT_EQ(caller.Echo("abcde"), "Abcde");
}

TEST(LinkProxy, FlipsAByteInsideALongChunk) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller caller(*proxy);
  proxy->Set({.kind = Kind::kFlipInside, .way = Way::kToServer, .after_bytes = 2, .mask = 0x20});
  EXPECT_EQ(caller.Echo("abcde"), "abcde") << "too short";
  EXPECT_FALSE(proxy->WaitStruck(Duration::zero()));
  std::string flipped(2000, 'x');
  flipped[1000] = 'X';
  EXPECT_EQ(caller.Echo(std::string(2000, 'x')), flipped);
  EXPECT_TRUE(proxy->WaitStruck(Duration::zero()));
  EXPECT_EQ(caller.Echo(std::string(2000, 'x')), std::string(2000, 'x')) << "once";
}

TEST(LinkProxy, DelaysEveryChunk) {
  EchoServer server;
  const auto proxy = MustListen(server.address());
  Caller caller(*proxy);
  EXPECT_EQ(caller.Echo("a"), "a");
  constexpr Duration kDelay = std::chrono::milliseconds(30);
  proxy->Set({.kind = Kind::kDelay, .delay = kDelay});
  const TimePoint begin = std::chrono::steady_clock::now();
  EXPECT_EQ(caller.Echo("b"), "b");
  EXPECT_EQ(caller.Echo("c"), "c");
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 4 * kDelay);
}

TEST(LinkProxy, TellsConnectionsApartByMarks) {
  EchoServer server;
  const auto proxy = MustListen(server.address(), {"/push", "/call"});
  Caller push(*proxy), call(*proxy);
  EXPECT_EQ(push.Echo("a /pu"), "a /pu");
  EXPECT_EQ(push.Echo("sh b"), "sh b") << "a mark may come in pieces";
  EXPECT_EQ(call.Echo("/call"), "/call");
  proxy->Set({.kind = Kind::kCut, .only = "/push"});
  EXPECT_EQ(push.Receive(1, kSoon), "");
  EXPECT_TRUE(push.error());
  EXPECT_EQ(call.Echo("still"), "still");
  proxy->Set({.kind = Kind::kHold, .only = "/push"});
  Caller next(*proxy);
  EXPECT_EQ(next.Echo("hello"), "hello");
  next.Send("/push");
  EXPECT_EQ(next.Receive(1, kNever), "") << "the chunk that names it is held already";
  EXPECT_TRUE(proxy->WaitStruck(kSoon));
}

TEST(LinkProxy, FollowsARestartedServer) {
  EchoServer second("2");
  auto first = std::make_unique<EchoServer>("1");
  const auto proxy = MustListen(first->address());
  EXPECT_EQ(Caller(*proxy).Receive(1, kSoon), "1");
  first.reset();
  Caller lost(*proxy);
  EXPECT_EQ(lost.Receive(1, kSoon), "");
  EXPECT_TRUE(lost.error()) << "nobody is there";
  proxy->SetTarget(second.address());
  EXPECT_EQ(Caller(*proxy).Receive(1, kSoon), "2");
}

TEST(LinkProxy, RefusesTargetsThatAreNone) {
  for (const char* target :
       {"localhost:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:1x", ":1"})
    EXPECT_EQ(LinkProxy::Listen(target).status().code(), StatusCode::kInvalidArgument) << target;
}

TEST(LinkProxy, DestructionWithOpenConnectionsEndsThem) {
  EchoServer server;
  auto proxy = MustListen(server.address());
  Caller caller(*proxy);
  EXPECT_EQ(caller.Echo("a"), "a");
  proxy->Set({.kind = Kind::kHold});
  caller.Send("b");
  proxy.reset();
  EXPECT_EQ(caller.Receive(1, kSoon), "");
  EXPECT_TRUE(caller.error());
}

}  // namespace
}  // namespace cachalot::testing
