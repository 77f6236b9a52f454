// A decode worker whose KV holds a third of what its streams need, and clients that do not read: with real
// processes.

#include <grpcpp/grpcpp.h>

#include <map>
#include <random>
#include <thread>

#include "cachalot/v1/generation.grpc.pb.h"
#include "tests/integration/cluster_fixture.h"
#include "tests/support/metrics.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown, kWait = std::chrono::seconds(60) * kSlowdown;
constexpr uint32_t kTimeoutMs = 200'000 * kSlowdown;
constexpr int kStreams = 16, kBlock = 128, kTokens = 480;
constexpr int kBlocksEach = 4;  // for kTokens and a prompt of up to 32
constexpr int kThird = kStreams * kBlocksEach / 3;
constexpr int kSlowTokens = 1200, kSlowBlocks = 10;
constexpr bool Slow(uint32_t i) { return i % 4 == 0; }

/// Greedy and sampled streams, most of them with penalties, which depend on every token before.
client::GenerateRequest RequestOf(uint32_t i, int max_tokens = kTokens) {
  std::mt19937 rng(100 + i);
  std::vector<int32_t> ids(8 + i);
  for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
  auto request = IdsRequest(std::move(ids), max_tokens, i % 4 ? 1.f : 0.f, i);
  request.frequency_penalty = i % 3 == 1 ? 0.6f : 0.f;
  request.repetition_penalty = i % 3 == 2 ? 1.2f : 1.f;
  request.timeout_ms = kTimeoutMs;
  return request;
}

std::vector<int32_t> EmbeddedAnswer(EmbeddedModel& embedded, const client::GenerateRequest& request) {
  SequenceState state;
  state.prompt = *request.token_ids;
  state.params.sampling.temperature = *request.temperature;
  state.params.sampling.seed = *request.seed;
  state.params.sampling.frequency_penalty = *request.frequency_penalty;
  state.params.sampling.repetition_penalty = *request.repetition_penalty;
  state.params.max_tokens = *request.max_tokens;
  state.params.ignore_eos = true;
  std::vector<int32_t> tokens;
  RunOptions run;
  run.on_token = [&](int64_t, int32_t token, FinishReason) { tokens.push_back(token); };
  const Status status = RunEmbedded(embedded, state, run);
  EXPECT_TRUE(status.ok()) << status;
  return tokens;
}

class Pressure : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!answers_.empty()) return;  // of another suite
    const auto embedded = MustLoad(DemoDirectory());
    ASSERT_TRUE(embedded);
    for (uint32_t i = 0; i < kStreams; ++i)
      answers_.push_back(EmbeddedAnswer(*embedded, RequestOf(i, Slow(i) ? kSlowTokens : kTokens)));
  }
  /// A decode worker with so many blocks of KV.
  void Start(int blocks, std::vector<std::string> prefill_flags = {}) {
    ASSERT_EQ(answers_.size(), size_t{kStreams});
    cluster_ =
        MustStart({.model = DemoDirectory(),
                   .prefill_flags = std::move(prefill_flags),
                   .decode_flags = {"--kv-tokens", std::to_string((blocks - kStreams) * kBlock),
                                    "--max-sequences", std::to_string(kStreams), "--reserve-ahead-tokens",
                                    "32", "--window", "48", "--metrics-listen", decode_metrics_},
                   .router_flags = {"--metrics-listen", router_metrics_}});
    ASSERT_TRUE(cluster_);
  }
  /// As a client does that is told to retry later: until it is taken, then to its end.
  Output AskUntilTaken(client::Client& client, const client::GenerateRequest& request) {
    Output output;
    do {
      output = Ask(client, request);
    } while (output.status.code == 8 && output.ids.empty());
    return output;
  }
  void ExpectAnswer(uint32_t i, const Output& output, int max_tokens = kTokens) {
    EXPECT_TRUE(output.status.ok()) << "stream " << i << ": " << output.status.message;
    const auto& answer = answers_[i];
    EXPECT_EQ(output.ids, std::vector<int32_t>(answer.begin(), answer.begin() + max_tokens))
        << "stream " << i;
  }
  void ExpectNothingHeld() {
    const Status status = cluster_->WaitNothingHeld(kSettled);
    EXPECT_TRUE(status.ok()) << status;
    const TimePoint end = std::chrono::steady_clock::now() + kSettled;
    while (Metric(decode_metrics_, "cachalot_decode_kv_blocks_used") != 0 &&
           std::chrono::steady_clock::now() < end)
      std::this_thread::yield();
    EXPECT_EQ(Metric(decode_metrics_, "cachalot_decode_kv_blocks_used"), 0);
  }

  /// It is taken; the client leaves then.
  static void LeaveAfterStarted(client::Client& client, const client::GenerateRequest& request) {
    const auto stream = client.Generate(request);
    client::Event event;
    EXPECT_TRUE(stream->Next(&event));
    stream->Cancel();
    (void)stream->Finish();
  }

  static inline std::vector<std::vector<int32_t>> answers_;
  const std::string decode_metrics_ = MetricsAddress(1), router_metrics_ = MetricsAddress(2);
  std::unique_ptr<ProcessCluster> cluster_;
};

TEST_F(Pressure, SixteenStreamsInAThirdOfTheirKvGetTheirTokens) {
  ASSERT_NO_FATAL_FAILURE(Start(kThird));
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kStreams; ++i)
    threads.emplace_back([&, i] {
      client::Client client(cluster_->router());
      ExpectAnswer(i, AskUntilTaken(client, RequestOf(i)));
    });
  for (auto& thread : threads) thread.join();
  ExpectNothingHeld();
  const double preemptions = Metric(decode_metrics_, "cachalot_decode_preemptions_total");
  EXPECT_GT(preemptions, 0);
  EXPECT_EQ(Metric(router_metrics_, "cachalot_router_preemptions_total"), preemptions);
  RecordProperty("preemptions", std::to_string(preemptions));
  // Every token was made once: what the prefills made is missing here.
  EXPECT_EQ(Metric(decode_metrics_, "cachalot_decode_tokens_total"), kStreams * (kTokens - 1) - preemptions);
}

/// What one router's requests give up is not for the other's new ones, which ask again and again.
TEST_F(Pressure, TwoRoutersShareASmallWorker) {
  ASSERT_NO_FATAL_FAILURE(Start(kThird));
  const auto second = cluster_->AddRouter();
  ASSERT_TRUE(second.ok()) << second.status();
  const std::string routers[] = {cluster_->router(), *second};
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kStreams; ++i)
    threads.emplace_back([&, i] {
      client::Client client(routers[i % 2]);
      const int tokens = i % 3 ? kTokens : kTokens / 2;
      ExpectAnswer(i, AskUntilTaken(client, RequestOf(i, tokens)), tokens);
    });
  for (auto& thread : threads) thread.join();
  ExpectNothingHeld();
  EXPECT_GT(Metric(decode_metrics_, "cachalot_decode_preemptions_total"), 0);
}

TEST_F(Pressure, WhatDoesNotFitNowIsToRetry) {
  ASSERT_NO_FATAL_FAILURE(Start(kThird));
  client::Client client(cluster_->router());
  const auto large = IdsRequest(std::vector<int32_t>(1500, 9), 1000, 0.f, 1);
  const auto stream = client.Generate(large);
  client::Event event;
  ASSERT_TRUE(stream->Next(&event));  // started: it has its KV
  const Output refused = Ask(client, large);
  EXPECT_EQ(refused.status.code, 8) << "RESOURCE_EXHAUSTED";
  EXPECT_NE(refused.status.message.find("blocks wanted for 1532 tokens"), std::string::npos)
      << refused.status.message;
  EXPECT_NE(refused.status.message.find("retry later"), std::string::npos) << refused.status.message;
  stream->Cancel();
  (void)stream->Finish();
  ExpectNothingHeld();
  LeaveAfterStarted(client, large);
}

TEST_F(Pressure, AFullPrefillWorkerEndsNothingThatHasStarted) {
  constexpr int kFew = 32;
  ASSERT_NO_FATAL_FAILURE(Start(kStreams * kBlocksEach, {"--max-sequences", "1", "--max-queue", "4"}));
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kStreams; ++i)
    threads.emplace_back([&, i] {
      client::Client client(cluster_->router());
      Output output;
      do {
        output = Ask(client, RequestOf(i, kFew));
      } while (output.status.code == 8 && !output.started);
      ExpectAnswer(i, output, kFew);
    });
  for (auto& thread : threads) thread.join();
  ExpectNothingHeld();
}

TEST_F(Pressure, WhatNeverFitsIsSaidWithBothNumbers) {
  ASSERT_NO_FATAL_FAILURE(Start(kThird));
  client::Client client(cluster_->router());
  const Output never = Ask(client, RequestOf(0, 3000));
  EXPECT_EQ(never.status.code, 11) << "OUT_OF_RANGE";
  const std::string numbers = "the prompt has 8 tokens and max_tokens is 3000: together more than the KV of ";
  EXPECT_NE(never.status.message.find(numbers + std::to_string(kThird * kBlock + 3) + " tokens"),
            std::string::npos)
      << never.status.message;
  EXPECT_EQ(Metric(decode_metrics_, "cachalot_decode_refused_total"), 1) << "asked once";

  auto embedded = EmbeddedModel::Load({.model = DemoDirectory(), .max_sequences = 1, .kv_tokens = 256});
  ASSERT_TRUE(embedded.ok()) << embedded.status();
  SequenceState state;
  state.prompt = {1, 2, 3};
  state.params.max_tokens = 500;
  const Status status = RunEmbedded(**embedded, state, {});
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_EQ(StatusMessage(status),
            "the prompt has 3 tokens and max_tokens is 500: together more than the KV of 387 "
            "tokens; lower max_tokens or raise --kv-tokens");
}

/// A stream whose client takes as good as nothing from its connection until it reads.
class UnreadStream {
 public:
  UnreadStream(const std::string& router, const client::GenerateRequest& wanted) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
    stub_ = v1::Inference::NewStub(
        grpc::CreateCustomChannel(router, grpc::InsecureChannelCredentials(), arguments));
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(wanted.timeout_ms));
    v1::GenerateRequest request;
    request.mutable_token_ids()->mutable_ids()->Assign(wanted.token_ids->begin(), wanted.token_ids->end());
    v1::SamplingParams& sampling = *request.mutable_sampling();
    sampling.set_temperature(*wanted.temperature);
    sampling.set_seed(*wanted.seed);
    sampling.set_frequency_penalty(*wanted.frequency_penalty);
    sampling.set_repetition_penalty(*wanted.repetition_penalty);
    request.set_max_tokens(*wanted.max_tokens);
    request.set_ignore_eos(true);
    request.set_logprobs(20);  // 140 bytes a token: more than the router's end of a connection takes, 64 KiB
    if (wanted.prompt_logprobs) request.set_prompt_logprobs(*wanted.prompt_logprobs);
    reader_ = stub_->Generate(&context_, request);
  }
  Output Read() {
    Output output;
    v1::GenerateResponse response;
    while (reader_->Read(&response)) {
      output.ids.insert(output.ids.end(), response.tokens().ids().begin(), response.tokens().ids().end());
      if (!response.has_prompt_logprobs()) continue;
      EXPECT_EQ(response.prompt_logprobs().first(), prompt_rows + 1);
      prompt_rows += response.prompt_logprobs().entries_size();
    }
    const grpc::Status status = reader_->Finish();
    output.status = {static_cast<int>(status.error_code()), status.error_message()};
    return output;
  }
  int prompt_rows = 0;  // that it has read

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
};

/// Streams 0, 4, 8 and 12 read nothing until the others are done.
class SlowReaders : public Pressure {
 protected:
  void Run(int blocks) {
    ASSERT_NO_FATAL_FAILURE(Start(blocks));
    std::map<uint32_t, std::unique_ptr<UnreadStream>> unread;
    for (uint32_t i = 0; i < kStreams; ++i)
      if (Slow(i)) unread[i] = std::make_unique<UnreadStream>(cluster_->router(), RequestOf(i, kSlowTokens));
    const TimePoint end = std::chrono::steady_clock::now() + kWait;
    while (Metric(decode_metrics_, "cachalot_decode_requests_total") < static_cast<double>(unread.size()))
      ASSERT_LT(std::chrono::steady_clock::now(), end);  // they are the oldest
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < kStreams; ++i)
      if (!Slow(i))
        threads.emplace_back([&, i] {
          client::Client client(cluster_->router());
          ExpectAnswer(i, AskUntilTaken(client, RequestOf(i)));
        });
    for (auto& thread : threads) thread.join();
    // The others are done; what the decode worker has made for these fits into windows and connections.
    const auto fast = static_cast<double>(kStreams - unread.size()) * kTokens;
    const double slow = Metric(decode_metrics_, "cachalot_decode_tokens_total") - fast;
    EXPECT_LT(slow, static_cast<double>(unread.size()) * (kSlowTokens - 300)) << "they were not slow";
    EXPECT_EQ(Metric(router_metrics_, "cachalot_router_running_requests"), unread.size());
    for (auto& [i, stream] : unread) ExpectAnswer(i, stream->Read(), kSlowTokens);
    ExpectNothingHeld();
  }
};

/// The hand-off of its KV does not wait for its reader; what runs beside it needs more than it leaves.
TEST_F(SlowReaders, OfPromptRowsHoldUpNobodyElse) {
  constexpr int kPrompt = 3840;  // 540 KB of rows
  ASSERT_NO_FATAL_FAILURE(Start(kPrompt / kBlock + 3, {"--max-chunk-tokens", "16"}));
  auto wanted = IdsRequest(std::vector<int32_t>(kPrompt, 9), 40, 1.f, 7);
  for (int i = 0; i < kPrompt; ++i) (*wanted.token_ids)[i] = 7 + i * 31 % 4000;
  wanted.prompt_logprobs = 20;
  wanted.frequency_penalty = 0.f;
  wanted.repetition_penalty = 1.f;
  wanted.timeout_ms = kTimeoutMs;
  const auto embedded = MustLoad(DemoDirectory());
  ASSERT_TRUE(embedded);
  const auto answer = EmbeddedTokens(*embedded, wanted);
  UnreadStream unread(cluster_->router(), wanted);
  const TimePoint end = std::chrono::steady_clock::now() + kWait;
  while (Metric(decode_metrics_, "cachalot_decode_requests_total") < 1)
    ASSERT_LT(std::chrono::steady_clock::now(), end);
  client::Client client(cluster_->router());
  ExpectAnswer(1, AskUntilTaken(client, RequestOf(1)));
  const Output output = unread.Read();
  EXPECT_TRUE(output.status.ok()) << output.status.message;
  EXPECT_EQ(output.ids, answer);
  EXPECT_EQ(unread.prompt_rows, kPrompt - 1);
  ExpectNothingHeld();
}

TEST_F(SlowReaders, HoldUpNobodyElse) {
  Run(kStreams * kSlowBlocks);
  EXPECT_EQ(Metric(decode_metrics_, "cachalot_decode_preemptions_total"), 0);
}

TEST_F(SlowReaders, GiveUpTheirKvToThoseThatRead) {
  Run(kThird);
  EXPECT_GT(Metric(decode_metrics_, "cachalot_decode_preemptions_total"), 0);
}

}  // namespace
}  // namespace cachalot::testing
