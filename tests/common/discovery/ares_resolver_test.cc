// The resolver against a DNS server of ours.

#include "common/discovery/ares_resolver.h"

#include <gmock/gmock.h>

#include <future>

#include "tests/support/dns_server.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Addresses = StatusOr<std::vector<std::string>>;

class AresResolverTest : public ::testing::Test {
 protected:
  AresResolverTest() {
    auto made = AresResolver::Make({.servers = dns_.address(), .timeout = std::chrono::milliseconds(200), .tries = 1});
    EXPECT_TRUE(made.ok()) << made.status();
    resolver_ = std::move(*made);
  }
  std::future<Addresses> Ask(const std::string& name) {
    auto promise = std::make_shared<std::promise<Addresses>>();
    resolver_->Resolve(name, [promise](Addresses addresses) { promise->set_value(std::move(addresses)); });
    return promise->get_future();
  }
  Addresses Resolve(const std::string& name) { return Ask(name).get(); }

  DnsServer dns_;
  std::unique_ptr<AresResolver> resolver_;
};

TEST_F(AresResolverTest, EveryAddressOfANameAndItsChanges) {
  dns_.Set("workers.test", {"127.0.0.2", "127.0.0.1", "127.0.0.3", "127.0.0.1"});
  Addresses addresses = Resolve("workers.test");
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_THAT(*addresses, ElementsAre("127.0.0.1", "127.0.0.2", "127.0.0.3"));
  dns_.Set("workers.test", {"127.0.0.9"});
  EXPECT_THAT(*Resolve("workers.test"), ElementsAre("127.0.0.9"));
  EXPECT_THAT(*Resolve("WORKERS.test."), ElementsAre("127.0.0.9"));
}

TEST_F(AresResolverTest, AaaaOnlyWhereThereIsNoA) {
  dns_.Set("six.test", {"fd00::2", "fd00::1"});
  dns_.Set("both.test", {"10.0.0.1", "fd00::1"});
  EXPECT_THAT(*Resolve("six.test"), ElementsAre("fd00::1", "fd00::2"));
  EXPECT_THAT(*Resolve("both.test"), ElementsAre("10.0.0.1"));
}

TEST_F(AresResolverTest, NoAnswerIsAnErrorThatNamesTheName) {
  dns_.Set("empty.test", {});
  for (const char* name : {"unknown.test", "empty.test"}) {
    const Addresses addresses = Resolve(name);
    EXPECT_EQ(addresses.status().code(), StatusCode::kNotFound) << addresses.status();
    EXPECT_THAT(StatusMessage(addresses.status()), HasSubstr(name));
  }
  dns_.Set("workers.test", {"127.0.0.1"});
  for (const auto mode : {DnsServer::Mode::kFail, DnsServer::Mode::kSilent, DnsServer::Mode::kTruncate}) {
    dns_.SetMode(mode);
    const Addresses addresses = Resolve("workers.test");
    EXPECT_EQ(addresses.status().code(), StatusCode::kUnavailable) << static_cast<int>(mode);
    EXPECT_THAT(StatusMessage(addresses.status()), HasSubstr("workers.test"));
  }
  dns_.SetMode(DnsServer::Mode::kAnswer);
  EXPECT_TRUE(Resolve("workers.test").ok()) << "and it recovers";
}

TEST_F(AresResolverTest, GoesWhileItIsAsked) {
  dns_.SetMode(DnsServer::Mode::kSilent);
  auto first = Ask("a.test"), second = Ask("b.test");
  while (dns_.queries() == 0) std::this_thread::yield();
  resolver_.reset();
  EXPECT_EQ(first.get().status().code(), StatusCode::kCancelled);
  EXPECT_EQ(second.get().status().code(), StatusCode::kCancelled);
}

TEST(AresResolver, ServersMustBeAddresses) {
  const auto made = AresResolver::Make({.servers = "no server"});
  EXPECT_EQ(made.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(StatusMessage(made.status()), HasSubstr("\"no server\": wanted IP:PORT"));
}

TEST(AresResolver, WithoutServersTheSystemsNames) {
  const auto made = AresResolver::Make({});
  ASSERT_TRUE(made.ok()) << made.status();
  std::promise<Addresses> promise;
  (*made)->Resolve("localhost", [&](Addresses addresses) { promise.set_value(std::move(addresses)); });
  const Addresses addresses = promise.get_future().get();
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_THAT(*addresses, ElementsAre("127.0.0.1"));
}

}  // namespace
}  // namespace cachalot::testing
