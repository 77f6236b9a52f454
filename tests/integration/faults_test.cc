// What must happen when a client leaves or a worker dies (docs/architecture.md), with real processes.

#include <atomic>
#include <csignal>
#include <random>
#include <thread>

#include "tests/integration/cluster_fixture.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown;

std::vector<int32_t> RandomIds(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
  return ids;
}

/// Reads `tokens` output tokens, then leaves.
void LeaveAfter(client::Client& client, const client::GenerateRequest& request, size_t tokens) {
  auto stream = client.Generate(request);
  client::Event event;
  for (size_t seen = 0; seen < tokens && stream->Next(&event);) seen += event.token_ids.size();
  stream->Cancel();
  (void)stream->Finish();
}

TEST(Cancel, FreesEveryBlockAtEachStep) {
  const auto cluster = MustStart({.model = DemoDirectory()});
  ASSERT_TRUE(cluster);
  client::Client client(cluster->router());
  const auto request = IdsRequest(RandomIds(700, 1), 2000, 0, 1);
  {
    auto stream = client.Generate(request);  // before anything has come back
    stream->Cancel();
    (void)stream->Finish();
  }
  EXPECT_TRUE(cluster->WaitNothingHeld(kSettled).ok()) << "at once";
  {
    auto stream = client.Generate(request);  // lease granted, prefill running
    client::Event event;
    ASSERT_TRUE(stream->Next(&event));
    EXPECT_EQ(event.kind, client::Event::Kind::kStarted);
    stream->Cancel();
    (void)stream->Finish();
  }
  EXPECT_TRUE(cluster->WaitNothingHeld(kSettled).ok()) << "during prefill";
  for (size_t tokens : {1, 2, 20}) {  // first token, first decode step, running
    LeaveAfter(client, request, tokens);
    const Status status = cluster->WaitNothingHeld(kSettled);
    EXPECT_TRUE(status.ok()) << "after " << tokens << " tokens: " << status;
  }
  client::GenerateRequest short_time = request;
  short_time.timeout_ms = 30;
  EXPECT_EQ(Ask(client, short_time).status.code, 4) << "DEADLINE_EXCEEDED";
  EXPECT_TRUE(cluster->WaitNothingHeld(kSettled).ok()) << "deadline";
  EXPECT_EQ(Ask(client, ChatRequest("Psalms 23:1")).text, "The LORD is my shepherd; I shall not want.");
}

TEST(Mixed, AThousandRequestsLeaveNothingBehind) {
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 2, .decode = 2});
  const auto embedded = MustLoad(DemoDirectory());
  ASSERT_TRUE(cluster && embedded);
  // 40 distinct requests, their answers known from the embedded mode; every tenth is left halfway.
  std::vector<client::GenerateRequest> requests;
  std::vector<std::vector<int32_t>> answers;
  for (uint32_t i = 0; i < 40; ++i) {
    requests.push_back(IdsRequest(RandomIds(1 + i * 4, i), 1 + static_cast<int>(i % 24), i % 2 ? 1.f : 0.f, i));
    answers.push_back(EmbeddedTokens(*embedded, requests.back()));
  }
  constexpr size_t kRequests = 1000 / kSlowdown;
  std::atomic<size_t> next = 0, wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t)
    threads.emplace_back([&] {
      client::Client client(cluster->router());
      for (size_t at; (at = next++) < kRequests;) {
        const size_t which = at % requests.size();
        if (at % 10 == 9) {
          LeaveAfter(client, requests[which], at % 7);
          continue;
        }
        const Output output = Ask(client, requests[which]);
        if (!output.status.ok() || output.ids != answers[which]) {
          ++wrong;
          ADD_FAILURE() << "request " << at << ": " << output.status.message;
        }
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
  const Status status = cluster->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

/// Reads one stream to its end, which must be `answer` exactly. `on_event` hears of everything meanwhile.
void ExpectStream(ProcessCluster& cluster, const client::GenerateRequest& request,
                  const std::vector<int32_t>& answer,
                  const std::function<void(const client::Event&)>& on_event) {
  client::Client client(cluster.router());
  auto stream = client.Generate(request);
  std::vector<int32_t> ids;
  client::Event event;
  while (stream->Next(&event)) {
    ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
    on_event(event);
  }
  const auto status = stream->Finish();
  EXPECT_TRUE(status.ok()) << "seed " << request.seed.value_or(0) << ": " << status.message;
  EXPECT_EQ(ids, answer) << "seed " << request.seed.value_or(0);
}

/// Streams on `cluster` while `fault` strikes; every answer must equal the embedded one.
void StreamsSurvive(ProcessCluster& cluster, const std::function<void()>& fault, size_t prompt, int max_tokens,
                    size_t strike_after_tokens) {
  const auto embedded = MustLoad(DemoDirectory());
  std::vector<client::GenerateRequest> requests;
  std::vector<std::vector<int32_t>> answers;
  for (uint32_t i = 0; i < 8; ++i) {
    requests.push_back(IdsRequest(RandomIds(prompt + i, 50 + i), max_tokens, 1.f, i));
    answers.push_back(EmbeddedTokens(*embedded, requests.back()));
  }
  std::atomic<size_t> tokens = 0, started = 0;
  std::atomic<bool> struck = false;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i)
    threads.emplace_back([&, i] {
      ExpectStream(cluster, requests[i], answers[i], [&](const client::Event& event) {
        started += event.kind == client::Event::Kind::kStarted;
        tokens += event.token_ids.size();
        if (tokens >= strike_after_tokens && started >= requests.size() / 2 && !struck.exchange(true))
          fault();
      });
    });
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(struck) << "the fault never struck: the test shows nothing";
}

TEST(Prefill, KilledWorkerIsSurvivedByRetryOnAnother) {
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 2, .decode = 1});
  ASSERT_TRUE(cluster);
  StreamsSurvive(*cluster, [&] { cluster->prefill(0).process->Kill(); }, 600, 8, 0);
  const Status status = cluster->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Prefill, StoppedWorkerThatWakesLaterChangesNothing) {
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 2, .decode = 1});
  ASSERT_TRUE(cluster);
  StreamsSurvive(*cluster, [&] { cluster->prefill(0).process->Signal(SIGSTOP); }, 600, 8, 0);
  cluster->prefill(0).process->Signal(SIGCONT);
  const Status status = cluster->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
  client::Client client(cluster->router());
  EXPECT_EQ(Ask(client, ChatRequest("Genesis 1:1")).text, "In the beginning God created the heaven and the earth.");
}

TEST(Decode, KilledWorkerLosesNoToken) {
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 1, .decode = 2});
  ASSERT_TRUE(cluster);
  StreamsSurvive(*cluster, [&] { cluster->decode(0).process->Kill(); }, 20, 400, 200);
  const Status status = cluster->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

/// Sixteen streams, whose only worker of a kind is killed after `tokens` and away for longer than a new request waits
/// for one.
void StreamsOutliveARestart(ProcessCluster& cluster, ProcessCluster::Member& member, size_t prompt, int max_tokens,
                            size_t strike_after_tokens) {
  constexpr uint32_t kStreams = 16;
  const auto embedded = MustLoad(DemoDirectory());
  ASSERT_TRUE(embedded);
  const auto before = ProcessCluster::Describe(member.address);
  ASSERT_TRUE(before.ok()) << before.status();
  std::vector<client::GenerateRequest> requests;
  std::vector<std::vector<int32_t>> answers;
  for (uint32_t i = 0; i < kStreams; ++i) {
    requests.push_back(IdsRequest(RandomIds(prompt + i, 50 + i), max_tokens, i % 2 ? 1.f : 0.f, i));
    requests.back().timeout_ms = 200'000 * kSlowdown;
    answers.push_back(EmbeddedTokens(*embedded, requests.back()));
  }
  std::atomic<size_t> tokens = 0, started = 0, over = 0;
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kStreams; ++i)
    threads.emplace_back([&, i] {
      ExpectStream(cluster, requests[i], answers[i], [&](const client::Event& event) {
        started += event.kind == client::Event::Kind::kStarted;
        tokens += event.token_ids.size();
      });
      ++over;
    });
  while ((tokens < strike_after_tokens || started < kStreams) && over < kStreams) std::this_thread::yield();
  member.process->Kill();
  const size_t over_before = over;
  std::this_thread::sleep_for(std::chrono::seconds(6));  // the fault's own length
  EXPECT_LT(over_before, kStreams) << "the fault came too late: the test shows nothing";
  const Status restarted = cluster.Restart(member);
  EXPECT_TRUE(restarted.ok()) << restarted;
  for (auto& thread : threads) thread.join();
  const auto after = ProcessCluster::Describe(member.address);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_NE(after->epoch(), before->epoch());
  const Status status = cluster.WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Restart, StreamsOutliveTheOnlyDecodeWorkers) {
  const auto cluster = MustStart({.model = DemoDirectory(), .own_addresses = true});
  ASSERT_TRUE(cluster);
  StreamsOutliveARestart(*cluster, cluster->decode(0), 20, 200, 400);
}

TEST(Restart, StreamsOutliveTheOnlyPrefillWorkers) {
  const auto cluster = MustStart({.model = DemoDirectory(), .own_addresses = true});
  ASSERT_TRUE(cluster);
  StreamsOutliveARestart(*cluster, cluster->prefill(0), 400, 8, 1);
}

TEST(Router, KilledRouterLeavesNothingOnTheWorkers) {
  const auto cluster = MustStart({.model = DemoDirectory()});
  ASSERT_TRUE(cluster);
  std::thread client_thread([&] {
    client::Client client(cluster->router());
    auto stream = client.Generate(IdsRequest(RandomIds(10, 3), 4000, 0, 1));
    client::Event event;
    for (size_t tokens = 0; stream->Next(&event);) {
      tokens += event.token_ids.size();
      if (tokens >= 20) cluster->router_member().process->Kill();
    }
    EXPECT_FALSE(stream->Finish().ok());
  });
  client_thread.join();
  const Status status = cluster->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Drain, SigtermEndsEveryRoleWithExitZero) {
  const auto cluster = MustStart({.model = DemoDirectory()});
  ASSERT_TRUE(cluster);
  client::Client client(cluster->router());
  EXPECT_TRUE(Ask(client, ChatRequest("Genesis 1:1")).status.ok());
  for (auto* member : {&cluster->router_member(), &cluster->prefill(0), &cluster->decode(0), &cluster->expert(0)}) {
    member->process->Signal(SIGTERM);
    const auto exit = member->process->Wait(std::chrono::steady_clock::now() + std::chrono::seconds(15));
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->code, 0) << member->process->name() << ": " << exit->ToString();
  }
}

TEST(Up, PrintsOneLineAndTakesItsChildrenAlong) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  auto up = ChildProcess::Spawn({.argv = {CACHALOT_BINARY_DIR "/cachalot", "up", "--model", DemoDirectory(), "--prefill",
                                          "1", "--decode", "1", "--expert-shards", "1", "--grpc-port", "0",
                                          "--log-level", "warning"}});
  ASSERT_TRUE(up.ok()) << up.status();
  const auto line = (*up)->ReadLine(deadline);
  ASSERT_TRUE(line.ok()) << line.status();
  char address[64], pids[256];
  ASSERT_EQ(2, std::sscanf(line->c_str(), "ready %63s %255s", address, pids)) << *line;
  client::Client client(address);
  EXPECT_EQ(Ask(client, ChatRequest("Genesis 1:1")).text, "In the beginning God created the heaven and the earth.");
  (*up)->Kill();
  (void)(*up)->Wait(deadline);
  int count = 0;
  for (char* at = pids; *at; ++count) {
    const auto pid = static_cast<pid_t>(std::strtol(at, &at, 10));
    if (*at == ',') ++at;
    while (kill(pid, 0) == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_NE(kill(pid, 0), 0) << "process " << pid << " outlived cachalot up";
  }
  EXPECT_EQ(count, 4);
}

}  // namespace
}  // namespace cachalot::testing
