// Workers that come and go by DNS under load, and routers that die under their streams (docs/architecture.md), with
// real processes.

#include <gmock/gmock.h>

#include <atomic>
#include <csignal>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "tests/integration/cluster_fixture.h"
#include "tests/support/broken_checkpoint.h"
#include "tests/support/dns_server.h"
#include "tests/support/own_address.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

constexpr Duration kStart = std::chrono::seconds(60) * kSlowdown;
constexpr size_t kStreams = 16;

std::vector<int32_t> RandomIds(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
  return ids;
}

/// Real processes that a test starts and ends one by one.
class Processes {
 public:
  ChildProcess& Start(const std::string& name, std::vector<std::string> argv) {
    argv[0] = std::string(CACHALOT_BINARY_DIR "/") + argv[0];
    argv.insert(argv.end(), {"--die-with-parent", "--log-level", "warning"});
    auto child = ChildProcess::Spawn({.argv = argv});
    EXPECT_TRUE(child.ok()) << child.status();
    children_[name] = std::move(*child);
    return *children_[name];
  }
  std::string Ready(const std::string& name) {
    const auto address = children_[name]->WaitReady(std::chrono::steady_clock::now() + kStart);
    EXPECT_TRUE(address.ok()) << name << ": " << address.status();
    return address.ok() ? *address : "";
  }
  ChildProcess& operator[](const std::string& name) { return *children_[name]; }

 private:
  std::map<std::string, std::unique_ptr<ChildProcess>> children_;
};

/// The streams of a test, each on a thread, and what the embedded mode says to the same requests.
class Streams {
 public:
  Streams(EmbeddedModel& embedded, int max_tokens) {
    for (uint32_t i = 0; i < kStreams; ++i) {
      requests_.push_back(IdsRequest(RandomIds(20 + i, 50 + i), max_tokens, i % 2 ? 1.f : 0.f, i));
      requests_.back().timeout_ms = 200'000 * kSlowdown;
      answers_.push_back(EmbeddedTokens(embedded, requests_.back()));
    }
  }
  ~Streams() { Join(); }

  /// `again`: asks again and again until Join.
  void Run(const std::string& routers, bool again) {
    again_ = again;
    for (size_t i = 0; i < kStreams; ++i)
      threads_.emplace_back([this, i, routers] {
        client::Client client(routers);
        do {
          One(client, i);
        } while (again_);
      });
  }
  void Join() {
    again_ = false;
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }
  size_t tokens() const { return tokens_; }
  size_t ended() const { return ended_; }
  /// Waits for `more` tokens from now on.
  void AwaitTokens(size_t more) const {
    const size_t end = tokens_ + more;
    const TimePoint deadline = std::chrono::steady_clock::now() + kStart;
    while (tokens_ < end && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_GE(tokens_, end) << "the streams stand still";
  }
  void AwaitAllStarted() const {
    const TimePoint deadline = std::chrono::steady_clock::now() + kStart;
    while (started_ < kStreams && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_GE(started_, kStreams) << "not all streams have started";
  }

 private:
  void One(client::Client& client, size_t i) {
    auto stream = client.Generate(requests_[i]);
    std::vector<int32_t> ids;
    client::Event event;
    while (stream->Next(&event)) {
      started_ += event.kind == client::Event::Kind::kStarted;
      tokens_ += event.token_ids.size();
      ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
    }
    const auto status = stream->Finish();
    EXPECT_TRUE(status.ok()) << "stream " << i << ": " << status.message;
    EXPECT_EQ(ids, answers_[i]) << "stream " << i;
    ++ended_;
  }

  std::vector<client::GenerateRequest> requests_;
  std::vector<std::vector<int32_t>> answers_;
  std::atomic<size_t> tokens_ = 0, started_ = 0, ended_ = 0;
  std::atomic<bool> again_ = false;
  std::vector<std::thread> threads_;
};

/// Sixteen streams lose their router to `signal` and go on at another one.
void ExpectNoStreamLost(int signal) {
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 1, .decode = 1, .expert_shards = 0});
  const auto embedded = MustLoad(DemoDirectory());
  ASSERT_TRUE(cluster && embedded);
  Processes more;
  more.Start("router", {"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", cluster->prefill(0).address,
                        "--decode", cluster->decode(0).address});
  const std::string second = more.Ready("router");
  Streams streams(*embedded, 200);
  streams.Run(cluster->router() + "," + second, false);
  streams.AwaitAllStarted();
  streams.AwaitTokens(4 * kStreams);
  EXPECT_LT(streams.ended(), kStreams / 2) << "the fault strikes behind the streams: the test shows nothing";
  cluster->router_member().process->Signal(signal);
  streams.Join();
  EXPECT_EQ(streams.ended(), kStreams);
  if (signal == SIGSTOP) cluster->router_member().process->Signal(SIGCONT);
  const Status status = cluster->WaitNothingHeld(std::chrono::seconds(15) * kSlowdown);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Routers, AKilledOneLosesNoStream) { ExpectNoStreamLost(SIGKILL); }
TEST(Routers, AHungOneLosesNoStream) { ExpectNoStreamLost(SIGSTOP); }

TEST(Routers, TheCommandGoesOnToo) {
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 1, .decode = 1, .expert_shards = 0});
  ASSERT_TRUE(cluster);
  // The first router is not there; then the only one.
  Programs programs;
  const Ended verse = programs.Run({"cachalot", "generate", "--router", "127.0.0.1:1," + cluster->router(), "--chat",
                                    "Genesis 1:1", "--max-tokens", "64"});
  EXPECT_EQ(verse.exit.code, 0) << verse.err;
  EXPECT_EQ(verse.out, "In the beginning God created the heaven and the earth.\n");
  cluster->router_member().process->Kill();
  ExpectFails({"cachalot", "generate", "--router", "127.0.0.1:1," + cluster->router(), "--ids", "1"}, kFailed,
              {"no router answers", "127.0.0.1:1: ", cluster->router() + ": "});
}

/// A cluster whose router knows names only.
class DnsTest : public ::testing::Test {
 protected:
  void StartWorker(const std::string& role, int host, const std::string& model = DemoDirectory()) {
    const std::string name = role + std::to_string(host);
    processes_.Start(name, {"cachalot-" + role, "--listen", Host(host) + ":" + std::to_string(port_), "--model", model,
                            "--experts", "local", "--drain-limit-ms", "120000"});
    processes_.Ready(name);
  }
  void StartRouter(const std::vector<std::string>& more = {}) {
    std::vector<std::string> argv = {"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", Name("prefill"),
                                     "--decode", Name("decode"), "--dns-server", dns_.address(), "--dns-interval-ms",
                                     "100"};
    argv.insert(argv.end(), more.begin(), more.end());
    processes_.Start("router", argv);
  }
  static client::ModelInfo AwaitModel(client::Client& client, const std::string& model) {
    client::ModelInfo info;
    const TimePoint end = std::chrono::steady_clock::now() + kStart;
    while ((!client.GetModelInfo(&info).ok() || info.model != model) && std::chrono::steady_clock::now() < end)
      std::this_thread::yield();
    EXPECT_EQ(info.model, model);
    return info;
  }
  std::string Name(const std::string& role) const { return "dns:" + role + ".test:" + std::to_string(port_); }
  /// One port for all of them: a name has one.
  static std::string Host(int host) { return OwnHost(host); }
  void Publish(const std::string& role, const std::vector<int>& hosts) {
    std::vector<std::string> addresses;
    for (const int host : hosts) addresses.push_back(Host(host));
    dns_.Set(role + ".test", addresses);
  }
  /// Until DNS was asked `more` times from now on.
  void AwaitQueries(int more) {
    const int end = dns_.queries() + more;
    const TimePoint deadline = std::chrono::steady_clock::now() + kStart;
    while (dns_.queries() < end && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_GE(dns_.queries(), end) << "nobody asks";
  }
  /// Until the load of the worker there is as `fits` wants.
  bool Eventually(int host, const std::function<bool(const v1::Load&)>& fits) {
    const TimePoint end = std::chrono::steady_clock::now() + kStart;
    while (std::chrono::steady_clock::now() < end) {
      const auto description = ProcessCluster::Describe(Host(host) + ":" + std::to_string(port_));
      if (description.ok() && fits(description->load())) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // between looks at another process
    }
    return false;
  }

  const int port_ = kOwnPort;
  DnsServer dns_;
  Processes processes_;
};

TEST_F(DnsTest, NamesThatChangeUnderLoad) {
  const auto embedded = MustLoad(DemoDirectory());
  ASSERT_TRUE(embedded);
  StartWorker("prefill", 1);
  StartWorker("decode", 2);
  Publish("prefill", {1});
  Publish("decode", {2});
  StartRouter();
  const std::string router = processes_.Ready("router");
  Streams streams(*embedded, 60);
  streams.Run(router, true);
  streams.AwaitTokens(200);

  // A new decode worker gets work; the old one leaves DNS, keeps what it has, gets no more and is let go.
  StartWorker("decode", 3);
  Publish("decode", {2, 3});
  EXPECT_TRUE(Eventually(3, [](const v1::Load& load) { return load.running_sequences() > 0; }));
  Publish("decode", {3});
  EXPECT_TRUE(Eventually(2, [](const v1::Load& load) { return load.leases() == 0; }));
  processes_["decode2"].Signal(SIGTERM);
  const auto exit = processes_["decode2"].Wait(std::chrono::steady_clock::now() + kStart);
  EXPECT_TRUE(exit.ok() && exit->code == 0);
  streams.AwaitTokens(200);

  // DNS that fails removes nobody.
  dns_.SetMode(DnsServer::Mode::kFail);
  AwaitQueries(4);
  streams.AwaitTokens(200);
  dns_.SetMode(DnsServer::Mode::kAnswer);

  // The prefill worker is replaced by one at another address and killed at once.
  StartWorker("prefill", 4);
  Publish("prefill", {4});
  processes_["prefill1"].Kill();
  EXPECT_TRUE(Eventually(4, [](const v1::Load& load) { return load.running_sequences() > 0; }));
  streams.AwaitTokens(200);
  streams.Join();
  EXPECT_GE(streams.ended(), kStreams);
  const auto idle = [](const v1::Load& load) {
    return load.leases() == 0 && load.running_sequences() == 0 && load.used_kv_blocks() == 0;
  };
  EXPECT_TRUE(Eventually(3, idle)) << "leases or KV are left at the decode worker";
  EXPECT_TRUE(Eventually(4, idle)) << "jobs or KV are left at the prefill worker";
}

TEST_F(DnsTest, ARollingUpgradeToOtherWeights) {
  const std::string tiny = std::string(CACHALOT_SOURCE_DIR) + "/tests/golden/oracle/tiny";
  StartWorker("prefill", 1);
  StartWorker("decode", 2);
  Publish("prefill", {1});
  Publish("decode", {2});
  StartRouter();
  const std::string router = processes_.Ready("router");
  client::Client client(router);
  EXPECT_EQ(Ask(client, ChatRequest("Genesis 1:1")).text, "In the beginning God created the heaven and the earth.");
  // The new ones come first, and are not used while the old ones are there.
  StartWorker("prefill", 3, tiny);
  StartWorker("decode", 4, tiny);
  Publish("prefill", {1, 3});
  Publish("decode", {2, 4});
  AwaitQueries(6);
  EXPECT_EQ(Ask(client, ChatRequest("Genesis 1:1")).text, "In the beginning God created the heaven and the earth.");
  // A stream that runs when the old ones leave ends where it began.
  const auto embedded = MustLoad(DemoDirectory());
  const auto request = IdsRequest(RandomIds(20, 1), 600, 0, 1);
  const auto answer = EmbeddedTokens(*embedded, request);
  auto stream = client.Generate(request);
  client::Event event;
  std::vector<int32_t> ids;
  while (ids.empty() && stream->Next(&event)) ids = event.token_ids;
  processes_["decode2"].Signal(SIGTERM);
  EXPECT_TRUE(Eventually(2, [](const v1::Load& load) { return !load.not_serving().empty(); }));
  EXPECT_TRUE(Eventually(2, [](const v1::Load& load) { return load.leases() > 0; })) << "the stream has ended before";
  Publish("prefill", {3});
  Publish("decode", {4});
  const client::ModelInfo info = AwaitModel(client, "tiny");
  EXPECT_FALSE(info.has_tokenizer);
  const auto golden = OracleCase::Load(tiny);
  ASSERT_TRUE(golden.ok()) << golden.status();
  const auto greedy =
      Ask(client, IdsRequest(golden->input_ids, static_cast<int>(golden->greedy_tokens.size()), 0, 1));
  EXPECT_TRUE(greedy.status.ok()) << greedy.status.message;
  EXPECT_EQ(greedy.ids, golden->greedy_tokens);
  while (stream->Next(&event)) ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(ids, answer);
}

TEST_F(DnsTest, ARouterWithFilesOfItsOwnServesANewModelOnceItHasItsFiles) {
  const BrokenCheckpoint tiny;  // a good copy
  const Programs folder;
  for (const char* file : {"config.json", "tokenizer.json"})
    std::filesystem::copy_file(DemoDirectory() + "/" + file, folder / file);
  StartWorker("prefill", 1);
  StartWorker("decode", 2);
  Publish("prefill", {1});
  Publish("decode", {2});
  StartRouter({"--model", folder / "."});
  client::Client client(processes_.Ready("router"));
  EXPECT_EQ(Ask(client, ChatRequest("Genesis 1:1")).text, "In the beginning God created the heaven and the earth.");
  StartWorker("prefill", 3, tiny.path());
  StartWorker("decode", 4, tiny.path());
  Publish("prefill", {3});
  Publish("decode", {4});
  const TimePoint end = std::chrono::steady_clock::now() + kStart;
  client::ModelInfo info;
  while (client.GetModelInfo(&info).ok() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  AwaitQueries(10);  // a second
  EXPECT_EQ(client.GetModelInfo(&info).code, 14) << "the old model's files with the new model's weights";
  std::filesystem::remove(folder / "tokenizer.json");
  std::filesystem::copy_file(tiny / "config.json", folder / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  const TimePoint served = std::chrono::steady_clock::now() + kStart;
  while (!client.GetModelInfo(&info).ok() && std::chrono::steady_clock::now() < served) std::this_thread::yield();
  EXPECT_FALSE(info.has_tokenizer);
  EXPECT_EQ(Ask(client, IdsRequest({5, 6}, 4, 0, 1)).ids.size(), 4u);
}

TEST_F(DnsTest, AnExpertShardMovesUnderLoad) {
  const auto embedded = MustLoad(DemoDirectory());
  ASSERT_TRUE(embedded);
  const auto start_expert = [&](int host, const std::string& shard) {
    const std::string name = "expert" + std::to_string(host);
    processes_.Start(name, {"cachalot-expert", "--listen", Host(host) + ":" + std::to_string(port_), "--model",
                            DemoDirectory(), "--shard", shard});
    processes_.Ready(name);
  };
  start_expert(1, "1/2");
  start_expert(2, "0/2");
  Publish("expert", {1, 2});
  std::map<std::string, std::string> workers;
  for (const std::string role : {"prefill", "decode"})
    processes_.Start(role, {"cachalot-" + role, "--listen", "127.0.0.1:0", "--model", DemoDirectory(), "--experts",
                            Name("expert"), "--dns-server", dns_.address()});
  for (const std::string role : {"prefill", "decode"}) workers[role] = processes_.Ready(role);
  processes_.Start("router", {"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", workers["prefill"], "--decode",
                              workers["decode"]});
  const std::string router = processes_.Ready("router");
  Streams streams(*embedded, 120);
  streams.Run(router, false);
  streams.AwaitAllStarted();
  streams.AwaitTokens(4 * kStreams);
  start_expert(3, "0/2");
  Publish("expert", {1, 3});
  EXPECT_LT(streams.ended(), kStreams / 2) << "the fault strikes behind the streams: the test shows nothing";
  processes_["expert2"].Kill();
  streams.Join();
  // Prefill finds it too.
  client::Client client(router);
  EXPECT_EQ(Ask(client, ChatRequest("Genesis 1:1")).text, "In the beginning God created the heaven and the earth.");
}

}  // namespace
}  // namespace cachalot::testing
