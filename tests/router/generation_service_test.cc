// The public API over the embedded engine, through the SDK: what a client of `cachalot serve` gets.

#include "router/generation_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/router/served.h"
#include "tests/support/oracle.h"

namespace cachalot::testing {
namespace {

using client::Event;
using client::GenerateRequest;
using ::testing::HasSubstr;

std::string TinyDirectory() { return CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny"; }

/// A model of random weights without a tokenizer, and its oracle.
class TinyServiceTest : public ::testing::Test {
 protected:
  TinyServiceTest() : served_(TinyDirectory()), oracle_(*OracleCase::Load(TinyDirectory())) {
    served_.Open();
  }
  GenerateRequest Golden() const {
    return Greedy(oracle_.input_ids, static_cast<int>(oracle_.greedy_tokens.size()));
  }
  Served served_;
  const OracleCase oracle_;
};

TEST_F(TinyServiceTest, AClientThatReadsNothingHoldsUpItsOwnRequestOnly) {
  auto wanted = Greedy({1, 2, 3, 4}, 1200);
  wanted.temperature = 1.f;
  wanted.seed = 3;
  const Output all = Generate(served_.client(), wanted);
  ASSERT_TRUE(all.status.ok()) << all.status.message;

  grpc::ChannelArguments arguments;  // as good as nothing is taken from the connection until it is read
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  const auto stub = v1::Inference::NewStub(grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(served_.server().port()), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  v1::GenerateRequest request;
  for (const int32_t id : *wanted.token_ids) request.mutable_token_ids()->add_ids(id);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(3);
  request.set_max_tokens(1200);
  request.set_ignore_eos(true);
  request.set_logprobs(20);  // 140 bytes a token
  const auto reader = stub->Generate(&context, request);
  std::vector<std::thread> others;
  for (uint64_t i = 0; i < 8; ++i)
    others.emplace_back([&, i] {
      auto other = Greedy({5, 6, static_cast<int32_t>(i)}, 1300);  // longer than the one that is not read
      const Output output = Generate(served_.client(), other);
      EXPECT_TRUE(output.status.ok()) << output.status.message;
      EXPECT_EQ(output.tokens.size(), 1300u);
    });
  for (auto& thread : others) thread.join();
  EXPECT_GT(served_.embedded().pools().used_blocks(), 0) << "it has not finished";
  std::vector<int32_t> tokens;
  v1::GenerateResponse response;
  while (reader->Read(&response))
    tokens.insert(tokens.end(), response.tokens().ids().begin(), response.tokens().ids().end());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, all.tokens);
  EXPECT_TRUE(served_.EventuallyAllFree());
}

TEST_F(TinyServiceTest, GoldenTokens) {
  GenerateRequest request = Golden();
  request.request_id = "golden";
  request.seed = 5;
  const Output output = Generate(served_.client(), request);
  ASSERT_TRUE(output.status.ok()) << output.status.message;
  EXPECT_EQ(output.tokens, oracle_.greedy_tokens);
  EXPECT_EQ(output.text, "");  // there is no tokenizer
  ASSERT_GE(output.events.size(), 3u);
  const Event &started = output.events.front(), &finished = output.events.back();
  EXPECT_EQ(started.kind, Event::Kind::kStarted);
  EXPECT_EQ(started.request_id, "golden");
  EXPECT_EQ(started.seed, 5u);
  EXPECT_EQ(started.prompt_tokens, static_cast<int>(oracle_.input_ids.size()));
  EXPECT_EQ(finished.kind, Event::Kind::kFinished);
  EXPECT_EQ(finished.finish_reason, "length");
  EXPECT_EQ(finished.prompt_tokens, started.prompt_tokens);
  EXPECT_EQ(finished.completion_tokens, static_cast<int>(output.tokens.size()));
  for (size_t i = 1; i + 1 < output.events.size(); ++i)
    EXPECT_EQ(output.events[i].kind, Event::Kind::kTokens);
  EXPECT_TRUE(served_.EventuallyAllFree());
}

TEST(PrefixCache, CachedTokensAreReportedAndChangeNothing) {
  Served served(TinyDirectory(), 32, 64 << 20);
  served.Open();
  const auto oracle = *OracleCase::Load(TinyDirectory());
  GenerateRequest request = Greedy(oracle.input_ids, 8);
  const std::vector<int32_t> golden(oracle.greedy_tokens.begin(), oracle.greedy_tokens.begin() + 8);
  const auto ask = [&](int cached) {
    const Output output = Generate(served.client(), request);
    ASSERT_TRUE(output.status.ok()) << output.status.message;
    int finished = 0;
    for (const Event& event : output.events) {
      if (event.kind != Event::Kind::kFinished) continue;
      ++finished;
      EXPECT_EQ(event.cached_tokens, cached);
      EXPECT_EQ(event.prompt_tokens, static_cast<int>(request.token_ids->size()));
    }
    EXPECT_EQ(finished, request.n.value_or(1));
    if (!request.n) {
      EXPECT_EQ(output.tokens, golden);
    }
  };
  ask(0);
  ask(256);
  request.n = 3;  // the choices follow one another
  ask(256);
  request.n.reset();
  request.prompt_logprobs = 1;  // every row is computed
  ask(0);
}

TEST_F(TinyServiceTest, StopTokenIsTheLastToken) {
  GenerateRequest request = Golden();
  const int32_t stop = oracle_.greedy_tokens[4];
  request.stop_token_ids = {stop};
  const Output output = Generate(served_.client(), request);
  ASSERT_TRUE(output.status.ok()) << output.status.message;
  const auto first = std::find(oracle_.greedy_tokens.begin(), oracle_.greedy_tokens.end(), stop);
  EXPECT_EQ(output.tokens, std::vector<int32_t>(oracle_.greedy_tokens.begin(), first + 1));
  EXPECT_EQ(output.events.back().finish_reason, "stop");
}

TEST_F(TinyServiceTest, OneTokenIsFirstAndLast) {
  const Output output = Generate(served_.client(), Greedy(oracle_.input_ids, 1));
  ASSERT_TRUE(output.status.ok()) << output.status.message;
  EXPECT_EQ(output.tokens, std::vector<int32_t>{oracle_.greedy_tokens[0]});
  EXPECT_TRUE(served_.EventuallyAllFree());
}

TEST_F(TinyServiceTest, ResumesWithTheSameTokens) {
  GenerateRequest request = Greedy(oracle_.input_ids, 24);
  request.temperature = 1.2f;
  const Output drawn = Generate(served_.client(), request);  // the seed is drawn and reported
  ASSERT_TRUE(drawn.status.ok()) << drawn.status.message;
  ASSERT_EQ(drawn.tokens.size(), 24u);
  request.seed = drawn.events.front().seed;
  for (const size_t have : {1, 11, 23}) {
    request.resume_tokens.assign(drawn.tokens.begin(), drawn.tokens.begin() + have);
    const Output rest = Generate(served_.client(), request);
    ASSERT_TRUE(rest.status.ok()) << rest.status.message;
    EXPECT_EQ(rest.tokens, std::vector<int32_t>(drawn.tokens.begin() + have, drawn.tokens.end())) << have;
    EXPECT_EQ(rest.events.back().completion_tokens, 24);
  }
}

TEST_F(TinyServiceTest, AWholeOutputIsOnlyFinished) {
  GenerateRequest request = Golden();
  request.resume_tokens = oracle_.greedy_tokens;
  const auto expect_end = [&](const std::string& reason) {
    const Output output = Generate(served_.client(), request);
    ASSERT_TRUE(output.status.ok()) << output.status.message;
    EXPECT_TRUE(output.tokens.empty());
    ASSERT_EQ(output.events.size(), 2u);
    EXPECT_EQ(output.events.back().kind, Event::Kind::kFinished);
    EXPECT_EQ(output.events.back().finish_reason, reason);
    EXPECT_EQ(output.events.back().completion_tokens, static_cast<int>(oracle_.greedy_tokens.size()));
  };
  expect_end("length");
  request.max_tokens = *request.max_tokens + 10;
  request.stop_token_ids = {oracle_.greedy_tokens.back()};
  expect_end("stop");
}

TEST_F(TinyServiceTest, ManyClientsGetWhatEachGetsAlone) {
  constexpr int kClients = 16;
  const auto request = [this](int i) {
    std::vector<int32_t> ids(oracle_.input_ids.begin(), oracle_.input_ids.begin() + 3 + 5 * i % 40);
    GenerateRequest r = Greedy(std::move(ids), 8 + i);
    if (i % 2) r.temperature = 0.9f;
    r.seed = 1000 + i;
    return r;
  };
  std::vector<Output> alone, together(kClients);
  for (int i = 0; i < kClients; ++i) alone.push_back(Generate(served_.client(), request(i)));
  std::vector<std::jthread> threads;
  for (int i = 0; i < kClients; ++i)
    threads.emplace_back([&, i] { together[i] = Generate(served_.client(), request(i)); });
  threads.clear();
  for (int i = 0; i < kClients; ++i) {
    ASSERT_TRUE(alone[i].status.ok()) << alone[i].status.message;
    ASSERT_TRUE(together[i].status.ok()) << together[i].status.message;
    EXPECT_EQ(alone[i].tokens.size(), static_cast<size_t>(8 + i));
    EXPECT_EQ(together[i], alone[i]) << i;
  }
  EXPECT_TRUE(served_.EventuallyAllFree());
}

TEST_F(TinyServiceTest, CancelFreesTheKv) {
  for (const bool by_dropping : {false, true}) {
    auto stream = served_.client().Generate(Greedy(oracle_.input_ids, 3500));
    Event event;
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(stream->Next(&event));
    EXPECT_GT(served_.embedded().pools().used_blocks(), 0);
    if (!by_dropping) {
      stream->Cancel();
      EXPECT_EQ(stream->Finish().code, static_cast<int>(StatusCode::kCancelled));
    }
    stream.reset();
    EXPECT_TRUE(served_.EventuallyAllFree());
  }
}

TEST_F(TinyServiceTest, DeadlineFreesTheKv) {
  GenerateRequest request = Greedy(oracle_.input_ids, 3500);
  request.timeout_ms = 100;
  EXPECT_EQ(Generate(served_.client(), request).status.code, static_cast<int>(StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(served_.EventuallyAllFree());
}

TEST_F(TinyServiceTest, TheEndOfTheServerEndsItsRequests) {
  const auto stream = served_.client().Generate(Greedy(oracle_.input_ids, 3500));
  Event event;
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(stream->Next(&event));
  served_.server().Shutdown(Duration::zero());
  EXPECT_FALSE(stream->Finish().ok());
  EXPECT_TRUE(served_.EventuallyAllFree());
}

TEST_F(TinyServiceTest, RefusesBadInput) {
  const int vocab = served_.embedded().config().vocab_size;
  const int64_t context = served_.embedded().config().max_position_embeddings;
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  using R = GenerateRequest;
  const struct {
    std::function<void(R&)> change;
    StatusCode code;
    std::string message;
  } cases[] = {
      {[](R& r) { r.token_ids.reset(); }, kInvalid, "exactly one of token_ids, text and chat"},
      {[](R& r) { r.token_ids->clear(); }, kInvalid, "the prompt has no tokens"},
      {[](R& r) {
         r.token_ids = {{1, -1}};
       },
       kInvalid, "token_ids[1] is -1"},
      {[&](R& r) { r.token_ids = {{vocab}}; }, kInvalid, "in [0, " + std::to_string(vocab) + ")"},
      {[&](R& r) { r.resume_tokens = {vocab}; }, kInvalid, "resume_tokens[0]"},
      {[](R& r) { r.stop_token_ids = {-1}; }, kInvalid, "stop_token_ids[0]"},
      {[](R& r) { r.max_tokens = 0; }, kInvalid, "max_tokens is 0"},
      {[](R& r) {
         r.max_tokens = 1, r.resume_tokens = {1, 2};
       },
       kInvalid, "resume_tokens has 2 tokens"},
      {[](R& r) { r.temperature = NAN; }, kInvalid, "temperature"},
      {[](R& r) { r.temperature = -1.f; }, kInvalid, "temperature"},
      {[](R& r) { r.top_p = 0.f; }, kInvalid, "top_p"},
      {[](R& r) { r.top_p = 1.1f; }, kInvalid, "top_p"},
      {[](R& r) { r.top_k = -1; }, kInvalid, "top_k"},
      {[](R& r) { r.min_p = 1.5f; }, kInvalid, "min_p: wanted a number in [0, 1], got 1.5"},
      {[](R& r) { r.frequency_penalty = 3.f; }, kInvalid, "frequency_penalty"},
      {[](R& r) { r.presence_penalty = -3.f; }, kInvalid, "presence_penalty"},
      {[](R& r) { r.repetition_penalty = 0.f; }, kInvalid, "repetition_penalty"},
      {[&](R& r) {
         r.logit_bias = {{vocab, 1.f}};
       },
       kInvalid, "logit_bias: wanted a token id in [0, "},
      {[](R& r) {
         r.logit_bias = {{1, 1.f}, {1, 2.f}};
       },
       kInvalid, "logit_bias of token 1: wanted one, got two"},
      {[](R& r) { r.min_tokens = 5; }, kInvalid, "min_tokens: wanted at most max_tokens, which is 4, got 5"},
      {[](R& r) { r.logprobs = -1; }, kInvalid, "logprobs: wanted 0 to 20, got -1"},
      {[](R& r) { r.prompt_logprobs = 21; }, kInvalid, "prompt_logprobs: wanted 0 to 20, got 21"},
      {[](R& r) { r.n = 0; }, kInvalid, "n: wanted 1 to 64, got 0"},
      {[](R& r) { r.n = 65; }, kInvalid, "n: wanted 1 to 64, got 65"},
      {[](R& r) { r.n = 2, r.resume_tokens = {1}; }, kInvalid, "resume_tokens: wanted none with n of 2"},
      {[](R& r) { r.stop = {""}; }, kInvalid, "stop[0]"},
      {[](R& r) { r.stop = {"a"}; }, StatusCode::kFailedPrecondition, "no tokenizer"},
      {[&](R& r) { r.max_tokens = static_cast<int>(context); }, StatusCode::kOutOfRange,
       "more than the context of " + std::to_string(context)},
      {[](R& r) { r.token_ids.reset(), r.text = "hello"; }, StatusCode::kFailedPrecondition, "no tokenizer"},
      {[](R& r) {
         r.token_ids.reset(), r.chat = {{"user", "hello"}};
       },
       StatusCode::kFailedPrecondition, "no tokenizer"},
  };
  for (const auto& c : cases) {
    GenerateRequest request = Greedy({1, 2, 3}, 4);
    c.change(request);
    const Output output = Generate(served_.client(), request);
    EXPECT_EQ(output.status.code, static_cast<int>(c.code)) << c.message << ": " << output.status.message;
    EXPECT_THAT(output.status.message, HasSubstr(c.message));
    EXPECT_TRUE(output.events.empty()) << c.message;  // nothing is sent before a request is admitted
  }
  std::vector<int32_t> ids;
  EXPECT_EQ(served_.client().Tokenize("hello", &ids).code, static_cast<int>(StatusCode::kFailedPrecondition));
  EXPECT_EQ(served_.embedded().pools().used_blocks(), 0);
}

TEST_F(TinyServiceTest, ModelInfo) {
  client::ModelInfo info;
  ASSERT_TRUE(served_.client().GetModelInfo(&info).ok());
  EXPECT_EQ(info.model, "tiny");
  EXPECT_EQ(info.mode, "exact");
  EXPECT_EQ(info.version, CACHALOT_VERSION);
  EXPECT_EQ(info.vocab_size, served_.embedded().config().vocab_size);
  EXPECT_EQ(info.max_context_tokens, 4096);
  EXPECT_EQ(info.eos_token_ids, served_.embedded().config().eos_token_ids);
  EXPECT_FALSE(info.has_tokenizer);
}

TEST_F(TinyServiceTest, LogitsAreTheOracles) {
  const std::vector<int32_t>& ids = oracle_.input_ids;
  const size_t vocab = served_.embedded().config().vocab_size;
  for (const int decode : {0, 3}) {
    int64_t next_row = 0;
    double worst = 0;
    const auto status =
        served_.client().Logits(ids, decode, 16, [&](int64_t first, int64_t rows, const float* values, size_t count) {
          EXPECT_EQ(first, next_row);
          ASSERT_EQ(count, rows * vocab);
          next_row += rows;
          for (size_t i = 0; i < rows * vocab; ++i)
            worst = std::max<double>(worst, std::abs(values[i] - oracle_.prompt_logits[first * vocab + i]));
        });
    ASSERT_TRUE(status.ok()) << status.message;
    EXPECT_EQ(next_row, static_cast<int64_t>(ids.size()));
    EXPECT_LT(worst, 1e-4);
  }
  const auto bad = served_.client().Logits({1, 2}, 2, 0, [](int64_t, int64_t, const float*, size_t) {});
  EXPECT_EQ(bad.code, static_cast<int>(StatusCode::kInvalidArgument));
}

TEST(GenerationService, IsUnavailableBeforeItServesAndWhenItDrains) {
  Served served(TinyDirectory());
  const GenerateRequest request = Greedy({1, 2, 3}, 2);
  const Output early = Generate(served.client(), request);
  EXPECT_EQ(early.status.code, static_cast<int>(StatusCode::kUnavailable));
  EXPECT_THAT(early.status.message, HasSubstr("not reached its workers"));
  served.Open();
  EXPECT_TRUE(Generate(served.client(), request).status.ok());
  const auto running = served.client().Generate(Greedy({1, 2, 3}, 400));
  Event event;
  ASSERT_TRUE(running->Next(&event));
  served.service().Drain();
  const Output late = Generate(served.client(), request);
  EXPECT_EQ(late.status.code, static_cast<int>(StatusCode::kUnavailable));
  EXPECT_THAT(late.status.message, HasSubstr("draining"));
  client::ModelInfo info;
  EXPECT_EQ(served.client().GetModelInfo(&info).code, static_cast<int>(StatusCode::kUnavailable));
  EXPECT_EQ(Collect(*running).tokens.size(), 400u);  // what runs goes on
}

TEST(GenerationService, NoRoomForTheKvIsSaidBeforeTheStart) {
  Served served(TinyDirectory(), 1);
  served.Open();
  const auto running = served.client().Generate(Greedy({1, 2, 3}, 3500));
  Event event;
  ASSERT_TRUE(running->Next(&event));
  const Output output = Generate(served.client(), Greedy({1, 2, 3}, 4));
  EXPECT_EQ(output.status.code, static_cast<int>(StatusCode::kResourceExhausted)) << output.status.message;
  EXPECT_TRUE(output.events.empty());
  running->Cancel();
  ASSERT_TRUE(served.EventuallyAllFree());
  EXPECT_TRUE(Generate(served.client(), Greedy({1, 2, 3}, 4)).status.ok());
}

TEST(GenerationService, AllChoicesAreAdmittedOrNone) {
  Served served(TinyDirectory(), 3);
  served.Open();
  GenerateRequest request = Greedy({1, 2, 3}, 30);
  request.n = 4;
  const Output refused = Generate(served.client(), request);
  EXPECT_EQ(refused.status.code, static_cast<int>(StatusCode::kResourceExhausted)) << refused.status.message;
  EXPECT_TRUE(refused.events.empty());
  ASSERT_TRUE(served.EventuallyAllFree());
  request.n = 3;
  const Output all = Generate(served.client(), request);
  ASSERT_TRUE(all.status.ok()) << all.status.message;
  EXPECT_EQ(all.tokens.size(), 90u);
  int started = 0, finished = 0;
  for (const Event& event : all.events) {
    started += event.kind == Event::Kind::kStarted;
    finished += event.kind == Event::Kind::kFinished;
  }
  EXPECT_EQ(started, 1);
  EXPECT_EQ(finished, 3);
  ASSERT_TRUE(served.EventuallyAllFree());
}

TEST(GenerationService, ChoicesAreTheRequestsOfTheirSeeds) {
  Served served(TinyDirectory());
  served.Open();
  GenerateRequest request = Greedy({5, 6, 7, 8}, 25);
  request.temperature = 1.f;
  request.seed = 100;
  request.logprobs = 2;
  request.prompt_logprobs = 1;
  request.n = 5;
  request.frequency_penalty = 0.5f;
  std::vector<std::vector<int32_t>> tokens(5);
  std::vector<size_t> logprobs(5);
  size_t prompt_logprobs = 0;
  const Output all = Generate(served.client(), request);
  ASSERT_TRUE(all.status.ok()) << all.status.message;
  for (const Event& event : all.events) {
    auto& ids = tokens.at(event.choice);
    ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
    if (event.kind == Event::Kind::kTokens) logprobs[event.choice] += event.logprobs.size();
    if (event.kind == Event::Kind::kPromptLogprobs) prompt_logprobs += event.logprobs.size();
  }
  EXPECT_EQ(prompt_logprobs, 3u);
  request.n.reset();
  for (int i = 0; i < 5; ++i) {
    request.seed = 100 + i;
    EXPECT_EQ(Generate(served.client(), request).tokens, tokens[i]) << i;
    EXPECT_EQ(logprobs[i], 25u);
  }
}

}  // namespace
}  // namespace cachalot::testing
