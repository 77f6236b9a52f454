// The cluster computes what the embedded mode computes, bit for bit.

#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "tests/integration/cluster_fixture.h"

namespace cachalot::testing {
namespace {

/// Every oracle case for 2 shards; two of the four of the repository for every shard count.
class Shards : public ::testing::TestWithParam<int> {};

TEST_P(Shards, LogitsThroughFourRolesEqualEmbeddedBitForBit) {
  for (const std::string& directory : OracleDirectories()) {
    const std::string name = std::filesystem::path(directory).filename();
    if (GetParam() != 2 && name != "tiny" && name != "flash-fp4-fp8") continue;
    SCOPED_TRACE(name);
    const auto oracle = *OracleCase::Load(directory);
    const auto embedded = MustLoad(directory);
    const auto cluster = MustStart({.model = directory, .expert_shards = GetParam(), .debug_logits = true});
    ASSERT_TRUE(embedded && cluster);
    client::Client client(cluster->router());
    std::vector<int32_t> ids = oracle.input_ids;
    ids.insert(ids.end(), oracle.greedy_tokens.begin(), oracle.greedy_tokens.end());
    const int vocab = embedded->config().vocab_size;
    const auto want = EmbeddedLogits(*embedded, ids, 0);
    for (auto [decode, chunk] : {std::pair{0, 0}, {0, 7}, {static_cast<int>(oracle.greedy_tokens.size()), 64}, {9, 3}}) {
      const auto got = ClusterLogits(client, ids, vocab, decode, chunk);
      ASSERT_EQ(0, std::memcmp(got.data(), want.data(), want.size() * sizeof(float)))
          << "decode " << decode << " chunk " << chunk;
    }
    const Output greedy = Ask(client, IdsRequest(oracle.input_ids, oracle.greedy_tokens.size(), 0, 1));
    EXPECT_TRUE(greedy.status.ok()) << greedy.status.message;
    EXPECT_EQ(greedy.ids, oracle.greedy_tokens);
  }
}

INSTANTIATE_TEST_SUITE_P(Counts, Shards, ::testing::Values(1, 2, 4, 8));

TEST(Bf16, LogitsThroughFourRolesEqualEmbeddedBitForBit) {
  const std::string directory = CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny";
  const auto oracle = *OracleCase::Load(directory);
  const auto embedded = MustLoad(directory, "bf16");
  ASSERT_TRUE(embedded);
  const auto want = EmbeddedLogits(*embedded, oracle.input_ids, 0);
  for (int shards : {1, 2, 4, 8}) {
    const auto cluster =
        MustStart({.model = directory, .expert_shards = shards, .debug_logits = true, .mode = "bf16"});
    ASSERT_TRUE(cluster);
    client::Client client(cluster->router());
    EXPECT_EQ(want, ClusterLogits(client, oracle.input_ids, embedded->config().vocab_size, 30, 64)) << shards;
  }
}

TEST(LongPrompt, SixHundredTokensThroughTwoPairsEqualEmbeddedBitForBit) {
  const auto embedded = MustLoad(DemoDirectory());
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 2, .decode = 2, .debug_logits = true});
  ASSERT_TRUE(embedded && cluster);
  std::mt19937 rng(600);
  std::vector<int32_t> ids(620);
  for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
  client::Client client(cluster->router());
  const int vocab = embedded->config().vocab_size;
  const auto want = EmbeddedLogits(*embedded, ids, 20);
  for (int chunk : {0, 100})
    EXPECT_EQ(want, ClusterLogits(client, ids, vocab, 20, chunk)) << "chunk " << chunk;
  ids.resize(600);
  const auto request = IdsRequest(ids, 40, 0, 1);
  const auto tokens = EmbeddedTokens(*embedded, request);
  std::vector<Output> outputs(4);  // more than one pair can take alone
  std::vector<std::thread> threads;
  for (Output& output : outputs) threads.emplace_back([&] { output = Ask(client, request); });
  for (auto& thread : threads) thread.join();
  for (const Output& output : outputs) EXPECT_EQ(output.ids, tokens) << output.status.message;
}

TEST(Seeds, SameTokensAloneInABatchEmbeddedAndDisaggregated) {
  const auto embedded = MustLoad(DemoDirectory());
  const auto cluster = MustStart({.model = DemoDirectory()});
  ASSERT_TRUE(embedded && cluster);
  client::Client client(cluster->router());
  std::mt19937 rng(16);
  std::vector<client::GenerateRequest> requests;
  for (int i = 0; i < 16; ++i) {
    std::vector<int32_t> ids(5 + 11 * i);
    for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
    requests.push_back(IdsRequest(ids, 24 + i, 1.f, 1000 + i));
  }
  std::vector<Output> batch(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i)
    threads.emplace_back([&, i] { batch[i] = Ask(client, requests[i]); });
  for (auto& thread : threads) thread.join();
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto want = EmbeddedTokens(*embedded, requests[i]);
    EXPECT_EQ(batch[i].ids, want) << "request " << i << " in a batch of 16: " << batch[i].status.message;
    EXPECT_EQ(Ask(client, requests[i]).ids, want) << "request " << i << " alone";
  }
  EXPECT_TRUE(cluster->WaitNothingHeld(std::chrono::seconds(10)).ok());
}

TEST(PrefixCache, TheSamePromptAgainIsCachedAndGivesTheSameTokens) {
  const auto embedded = MustLoad(DemoDirectory());  // without a cache
  const auto cluster = MustStart({.model = DemoDirectory()}),
             without = MustStart({.model = DemoDirectory(), .prefill_flags = {"--prefix-cache-bytes", "0"}});
  ASSERT_TRUE(embedded && cluster && without);
  client::Client client(cluster->router()), plain(without->router());
  std::mt19937 rng(1200);
  std::vector<int32_t> ids(1200);
  for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
  const auto request = IdsRequest(ids, 24, 1.f, 7);
  const auto want = EmbeddedTokens(*embedded, request);
  for (const int cached : {0, 1152, 1152}) {
    const Output output = Ask(client, request);
    EXPECT_EQ(output.ids, want) << output.status.message;
    EXPECT_EQ(output.cached_tokens, cached);
  }
  ids.resize(900);
  ids.insert(ids.end(), {11, 12, 13});  // leaves it inside
  const auto other = IdsRequest(ids, 24, 1.f, 8);
  const auto want_other = EmbeddedTokens(*embedded, other);
  for (const int cached : {0, 896}) {
    const Output output = Ask(client, other);
    EXPECT_EQ(output.ids, want_other) << output.status.message;
    EXPECT_EQ(output.cached_tokens, cached);
  }
  for (int i = 0; i < 2; ++i) {
    const Output output = Ask(plain, request);
    EXPECT_EQ(output.ids, want) << output.status.message;
    EXPECT_EQ(output.cached_tokens, 0);
  }
  EXPECT_TRUE(cluster->WaitNothingHeld(std::chrono::seconds(10)).ok());
}

TEST(PrefixCache, APromptGoesBackToThePrefillWorkerThatHasItsPrefix) {
  const auto embedded = MustLoad(DemoDirectory());
  const auto cluster = MustStart({.model = DemoDirectory(), .prefill = 2});
  ASSERT_TRUE(embedded && cluster);
  client::Client client(cluster->router());
  std::mt19937 rng(1200);
  std::vector<client::GenerateRequest> requests;
  for (int i = 0; i < 4; ++i) {
    std::vector<int32_t> ids(1200);
    for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
    requests.push_back(IdsRequest(ids, 8, 0, 1));
  }
  std::vector<std::thread> threads;  // together, so that both workers get some
  for (const auto& request : requests) threads.emplace_back([&] { Ask(client, request); });
  for (auto& thread : threads) thread.join();
  for (const auto& request : requests) {  // each alone: by load they would all go to one
    const Output output = Ask(client, request);
    EXPECT_EQ(output.ids, EmbeddedTokens(*embedded, request)) << output.status.message;
    EXPECT_EQ(output.cached_tokens, 1152);
  }
}

}  // namespace
}  // namespace cachalot::testing
