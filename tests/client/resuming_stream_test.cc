// Streams of the SDK over routers that die: nothing lost, repeated or changed, whenever it happens.

#include <gmock/gmock.h>

#include <atomic>
#include <map>
#include <set>
#include <thread>

#include "client/sdk/client.h"
#include "tests/client/fake_router.h"

namespace cachalot::testing {
namespace {

using client::Client;
using client::Event;
using client::GenerateRequest;
using ::testing::HasSubstr;

constexpr int kLength = 12;
enum Code { kCancelled = 1, kDeadline = 4, kPrecondition = 9, kUnavailable = 14 };

struct Seen {
  client::Status status;
  int started = 0;
  uint64_t seed = 0;
  std::map<int, std::vector<int32_t>> tokens;
  std::map<int, std::string> text;
  std::map<int, int> finished;
  std::vector<float> prompt_logprobs;
};

Seen Collect(client::TokenStream& stream) {
  Seen seen;
  Event event;
  while (stream.Next(&event)) {
    if (event.kind == Event::Kind::kStarted) {
      ++seen.started;
      seen.seed = event.seed;
      continue;
    }
    if (event.kind == Event::Kind::kPromptLogprobs) {
      for (const auto& entry : event.logprobs) seen.prompt_logprobs.push_back(entry.logprob);
      continue;
    }
    auto& tokens = seen.tokens[event.choice];
    tokens.insert(tokens.end(), event.token_ids.begin(), event.token_ids.end());
    seen.text[event.choice] += event.text;
    seen.finished[event.choice] += event.kind == Event::Kind::kFinished;
  }
  seen.status = stream.Finish();
  return seen;
}

GenerateRequest RequestOf(int n) {
  GenerateRequest request;
  request.token_ids = std::vector<int32_t>(kPromptTokens, 1);
  request.max_tokens = kLength;
  if (n > 1) request.n = n;
  request.prompt_logprobs = 0;
  request.timeout_ms = 30'000;
  return request;
}

/// That the caller saw one whole output of `n` choices, whoever served it.
void ExpectWhole(const Seen& seen, int n, const std::set<uint64_t>& seeds) {
  ASSERT_TRUE(seen.status.ok()) << seen.status.code << " " << seen.status.message;
  EXPECT_EQ(seen.started, 1);
  EXPECT_TRUE(seeds.contains(seen.seed)) << seen.seed;
  ASSERT_EQ(seen.tokens.size(), static_cast<size_t>(n));
  for (int c = 0; c < n; ++c) {
    std::vector<int32_t> tokens;
    std::string text;
    for (size_t i = 0; i < kLength; ++i) {
      tokens.push_back(FakeToken(seen.seed + static_cast<uint64_t>(c), i));
      text += FakeText(tokens.back());
    }
    EXPECT_EQ(seen.tokens.at(c), tokens) << "choice " << c;
    EXPECT_EQ(seen.text.at(c), text + ".") << "choice " << c;
    EXPECT_EQ(seen.finished.at(c), 1) << "choice " << c;
  }
  std::vector<float> logprobs;
  for (int i = 1; i < kPromptTokens; ++i) logprobs.push_back(-static_cast<float>(i));
  EXPECT_EQ(seen.prompt_logprobs, logprobs);
}

/// How many messages an undisturbed stream has.
int MessagesOf(int n) {
  FakeRouter router(5);
  int messages = 0;
  Client client(router.address());
  const auto stream = client.Generate(RequestOf(n));
  Event event;
  while (stream->Next(&event)) ++messages;
  EXPECT_TRUE(stream->Finish().ok());
  return messages;
}

class DyingRouter : public ::testing::TestWithParam<int> {};

TEST_P(DyingRouter, AfterEachMessageTheNextOneGoesOn) {
  const int n = GetParam(), all = MessagesOf(n);
  ASSERT_GE(all, 10);
  const grpc::Status ends[] = {{grpc::StatusCode::UNAVAILABLE, "gone"},
                               {grpc::StatusCode::CANCELLED, "shutting down"},
                               grpc::Status::OK};  // a stream that ends too early without an error
  for (int k = 0; k <= all; ++k)
    for (const grpc::Status& end : ends) {
      SCOPED_TRACE("dies after message " + std::to_string(k) + " with code " + std::to_string(end.error_code()));
      FakeRouter dying(100), other(200);
      dying.death = [&](int) { return FakeRouter::Death{k, end}; };
      Client client(dying.address() + "," + other.address());
      const auto stream = client.Generate(RequestOf(n));
      ExpectWhole(Collect(*stream), n, k == 0 ? std::set<uint64_t>{200} : std::set<uint64_t>{100});
      EXPECT_EQ(dying.requests().size(), 1u);
      EXPECT_EQ(other.requests().empty(), k == all);
    }
}

TEST_P(DyingRouter, BothDieAgainAndAgain) {
  const int n = GetParam();
  // Each life brings at least one token: Started, for the first the log probabilities, then the rest.
  for (int k = 5; k < 9; ++k) {
    SCOPED_TRACE("every stream dies after message " + std::to_string(k));
    FakeRouter a(100), b(200);
    a.per_message = b.per_message = 1;
    a.death = b.death = [&](int) { return FakeRouter::Death{k}; };
    Client client(a.address() + "," + b.address());
    const auto stream = client.Generate(RequestOf(n));
    ExpectWhole(Collect(*stream), n, {100});
    EXPECT_GE(a.requests().size() + b.requests().size(), 3u);
  }
}

INSTANTIATE_TEST_SUITE_P(Choices, DyingRouter, ::testing::Values(1, 3));

TEST(ResumingStream, AsksBehindWhatTheCallerHas) {
  FakeRouter dying(100), other(200);
  dying.death = [](int) { return FakeRouter::Death{6}; };  // Started, 3 of log probabilities, 2 x 2 tokens
  GenerateRequest request = RequestOf(1);
  request.temperature = 0.5f;
  request.stop = {"x"};
  Client client(dying.address() + "," + other.address());
  const auto stream = client.Generate(request);
  ExpectWhole(Collect(*stream), 1, {100});
  ASSERT_EQ(other.requests().size(), 1u);
  const v1::GenerateRequest resumed = other.requests()[0];
  EXPECT_EQ(resumed.sampling().seed(), 100u);
  EXPECT_EQ(resumed.request_id(), "made");
  EXPECT_FALSE(resumed.has_prompt_logprobs()) << "the caller has them";
  EXPECT_EQ(resumed.max_tokens(), kLength);
  EXPECT_EQ(resumed.sampling().temperature(), 0.5f);
  EXPECT_EQ(resumed.stop(0), "x");
  ASSERT_EQ(resumed.resume_tokens_size(), 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(resumed.resume_tokens(i), FakeToken(100, static_cast<size_t>(i)));
  // What works is asked first from now on.
  const auto second = client.Generate(request);
  ExpectWhole(Collect(*second), 1, {200});
  EXPECT_EQ(dying.requests().size(), 1u);
}

TEST(ResumingStream, BehindTokensThatTheCallerHadBefore) {
  FakeRouter dying(100), other(200);
  dying.death = [](int) { return FakeRouter::Death{2}; };
  GenerateRequest request = RequestOf(1);
  request.prompt_logprobs.reset();
  request.seed = 7;
  for (size_t i = 0; i < 5; ++i) request.resume_tokens.push_back(FakeToken(7, i));
  Client client(dying.address() + "," + other.address());
  const auto stream = client.Generate(request);
  const Seen seen = Collect(*stream);
  ASSERT_TRUE(seen.status.ok()) << seen.status.message;
  std::vector<int32_t> rest;
  for (size_t i = 5; i < kLength; ++i) rest.push_back(FakeToken(7, i));
  EXPECT_EQ(seen.tokens.at(0), rest);
  ASSERT_EQ(other.requests().size(), 1u);
  EXPECT_EQ(other.requests()[0].resume_tokens_size(), 7);
}

TEST(ResumingStream, GivesUpNamingEveryRouter) {
  FakeRouter a(1), b(2);
  b.death = [](int) { return FakeRouter::Death{0, {grpc::StatusCode::UNAVAILABLE, "b is ill"}}; };
  a.per_message = kLength;
  {
    // With the first message of tokens the output is there: only its end is missing, and nobody gives it.
    a.death = [](int call) {
      return FakeRouter::Death{call == 0 ? 5 : 1, {grpc::StatusCode::UNAVAILABLE, "a is ill"}};
    };
    Client client(a.address() + "," + b.address(), {4});
    const auto stream = client.Generate(RequestOf(1));
    const Seen seen = Collect(*stream);
    EXPECT_EQ(seen.tokens.at(0).size(), static_cast<size_t>(kLength));
    EXPECT_EQ(seen.status.code, kUnavailable);
    EXPECT_THAT(seen.status.message, HasSubstr("gave up after 4 failures without news, with 12 output tokens"));
    EXPECT_THAT(seen.status.message, HasSubstr(a.address() + ": a is ill; " + b.address() + ": b is ill"));
    EXPECT_EQ(a.requests().size() + b.requests().size(), 4u);
  }
  // One router, one attempt: its error as it is.
  Client alone(b.address());
  const auto stream = alone.Generate(RequestOf(1));
  EXPECT_EQ(Collect(*stream).status.message, "b is ill");
  // Nobody there at all.
  a.Stop();
  b.Stop();
  Client nobody(a.address() + "," + b.address());
  const auto lost = nobody.Generate(RequestOf(1));
  const Seen seen = Collect(*lost);
  EXPECT_EQ(seen.status.code, kUnavailable);
  EXPECT_THAT(seen.status.message, HasSubstr(a.address()));
  EXPECT_THAT(seen.status.message, HasSubstr(b.address()));
  client::ModelInfo info;
  const client::Status unary = nobody.GetModelInfo(&info);
  EXPECT_EQ(unary.code, kUnavailable);
  EXPECT_THAT(unary.message, HasSubstr("no router answers"));
  EXPECT_THAT(unary.message, HasSubstr(b.address()));
}

TEST(ResumingStream, ErrorsOfTheRequestAreNotTriedElsewhere) {
  for (const auto code : {grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::OUT_OF_RANGE,
                          grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::INTERNAL,
                          grpc::StatusCode::UNKNOWN}) {
    FakeRouter a(1), b(2);
    a.death = [&](int) { return FakeRouter::Death{0, {code, "no"}}; };
    Client client(a.address() + "," + b.address());
    const auto stream = client.Generate(RequestOf(1));
    const Seen seen = Collect(*stream);
    EXPECT_EQ(seen.status.code, code);
    EXPECT_EQ(seen.status.message, "no");
    EXPECT_TRUE(b.requests().empty());
  }
}

TEST(ResumingStream, WhatTheRouterDidNotChooseIsABrokenLink) {
  for (const auto code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::UNKNOWN})
    for (const int messages : {0, 6}) {
      SCOPED_TRACE("code " + std::to_string(code) + " after message " + std::to_string(messages));
      FakeRouter a(100), b(200);
      a.death = [&](int) { return FakeRouter::Death{messages, {code, "no frame"}, false}; };
      Client client(a.address() + "," + b.address());
      const auto stream = client.Generate(RequestOf(1));
      ExpectWhole(Collect(*stream), 1, {messages == 0 ? 200u : 100u});
      EXPECT_EQ(b.requests().size(), 1u);
      // With nobody to go on at, the caller learns that it may try again.
      Client alone(a.address());
      const auto broken = alone.Generate(RequestOf(1));
      const Seen seen = Collect(*broken);
      EXPECT_EQ(seen.status.code, kUnavailable);
      EXPECT_EQ(seen.status.message, "no frame");
    }
}

TEST(ResumingStream, AnErrorThatTheRouterChoseInTheMiddleEndsTheStream) {
  for (const auto code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::UNKNOWN}) {
    FakeRouter a(100), b(200);
    a.death = [&](int) { return FakeRouter::Death{6, {code, "nan"}}; };
    Client client(a.address() + "," + b.address());
    const auto stream = client.Generate(RequestOf(1));
    const Seen seen = Collect(*stream);
    EXPECT_EQ(seen.status.code, code);
    EXPECT_EQ(seen.status.message, "nan");
    EXPECT_TRUE(b.requests().empty());
  }
}

TEST(ResumingStream, NeverGoesOnWithAnotherModel) {
  FakeRouter dying(100, "weights 1"), other(200, "weights 2"), shorter(300, "weights 1");
  dying.death = [](int) { return FakeRouter::Death{6}; };
  shorter.prompt_tokens = kPromptTokens - 1;  // another tokenizer
  {
    Client client(dying.address() + "," + other.address(), {2});
    const auto stream = client.Generate(RequestOf(1));
    const Seen seen = Collect(*stream);
    EXPECT_EQ(seen.tokens.at(0).size(), 4u);
    EXPECT_EQ(seen.status.code, kPrecondition);
    EXPECT_THAT(seen.status.message, HasSubstr("compat is \"weights 2\" there, \"weights 1\" where"));
  }
  {
    Client client(dying.address() + "," + shorter.address(), {2});
    const auto stream = client.Generate(RequestOf(1));
    const Seen seen = Collect(*stream);
    EXPECT_EQ(seen.tokens.at(0).size(), 4u);
    EXPECT_THAT(seen.status.message, HasSubstr("8 tokens for a prompt of 9"));
  }
}

TEST(ResumingStream, TheDeadlineIsOfAllAttempts) {
  FakeRouter a(1), b(2);
  a.death = b.death = [](int) { return FakeRouter::Death{0}; };
  GenerateRequest request = RequestOf(1);
  request.timeout_ms = 1000;  // both have been tried by then
  Client client(a.address() + "," + b.address(), {1 << 20});
  const auto stream = client.Generate(request);
  const Seen seen = Collect(*stream);
  EXPECT_EQ(seen.status.code, kDeadline);
  EXPECT_THAT(seen.status.message, HasSubstr(a.address()));
}

TEST(ResumingStream, CancelEndsThePauseBetweenAttempts) {
  FakeRouter a(1);
  std::atomic<int> calls = 0;
  a.death = [&](int) {
    ++calls;
    return FakeRouter::Death{0};
  };
  Client client(a.address(), {1 << 20});
  GenerateRequest request = RequestOf(1);
  request.timeout_ms = 0;
  const auto stream = client.Generate(request);
  std::thread canceller([&] {
    while (calls < 3) std::this_thread::yield();
    stream->Cancel();
  });
  EXPECT_EQ(Collect(*stream).status.code, kCancelled);
  canceller.join();
}

TEST(ResumingStream, MayBeDroppedAtAnyTime) {
  FakeRouter a(1), b(2);
  a.death = [](int) { return FakeRouter::Death{6}; };
  Client client(a.address() + "," + b.address());
  for (int taken = 0; taken < 12; ++taken) {
    const auto stream = client.Generate(RequestOf(3));
    Event event;
    for (int i = 0; i < taken; ++i) ASSERT_TRUE(stream->Next(&event));
  }
}

}  // namespace
}  // namespace cachalot::testing
