// What `cachalot generate` prints does not depend on where it ran, for every sampling parameter; and what
// only a router does: choices, stop strings across streams, resumption.

#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/integration/cluster_fixture.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

using nlohmann::json;

constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown;

class Sampling : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster_ = MustStart({.model = DemoDirectory(), .prefill = 2, .decode = 2}).release();
  }
  static void TearDownTestSuite() { delete cluster_; }
  void SetUp() override { ASSERT_NE(cluster_, nullptr); }

  /// The line that the command prints.
  static std::string Print(const std::string& flag, const std::string& where,
                           const std::vector<std::string>& flags) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    std::vector<std::string> argv = {CACHALOT_BINARY_DIR "/cachalot", "generate", flag, where, "--json"};
    argv.insert(argv.end(), flags.begin(), flags.end());
    auto child = ChildProcess::Spawn({.argv = argv});
    if (!child.ok()) return StatusMessage(child.status());
    const auto line = (*child)->ReadLine(deadline);
    return line.ok() ? *line : StatusMessage(line.status());
  }
  static json Embedded(const std::vector<std::string>& flags) {
    return json::parse(Print("--model", DemoDirectory(), flags), nullptr, false);
  }

  static inline ProcessCluster* cluster_ = nullptr;
};

const std::vector<std::string> kChat = {"--chat", "Psalms 23:1", "--max-tokens", "60"};
const std::vector<std::string> kSampled = {
    "--prompt",    "In the beginning God created", "--max-tokens", "60", "--temperature", "1", "--seed", "41",
    "--ignore-eos"};

std::vector<std::string> With(std::vector<std::string> flags, const std::vector<std::string>& more) {
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

TEST_F(Sampling, TheClusterPrintsWhatTheEmbeddedModePrints) {
  const std::vector<std::vector<std::string>> table = {
      kChat,
      kSampled,
      With(kSampled, {"--top-k", "20", "--top-p", "0.9"}),
      With(kSampled, {"--min-p", "0.2"}),
      With(kSampled, {"--frequency-penalty", "0.8"}),
      With(kSampled, {"--presence-penalty", "-0.5"}),
      With(kSampled, {"--repetition-penalty", "1.3"}),
      With(kChat, {"--repetition-penalty", "1.2", "--frequency-penalty", "0.3"}),
      With(kChat, {"--logit-bias", "100:-20,200:5.5,300:1e1"}),
      With(kChat, {"--min-tokens", "40"}),
      With(kChat, {"--stop", "shepherd"}),
      With(kChat, {"--stop", "[\"not there\", \"; I\", \"shepherd; I shall\"]"}),
      With(kChat, {"--stop", "LORD", "--min-tokens", "20"}),
      With(kChat, {"--logprobs", "0"}),
      With(kSampled, {"--logprobs", "20", "--prompt-logprobs", "3"}),
      With(kChat, {"--max-tokens", "1", "--logprobs", "2"}),
      With(kSampled, {"--n", "4"}),
      With(kSampled,
           {"--n", "4", "--logprobs", "2", "--prompt-logprobs", "0", "--stop", "a,e", "--min-tokens", "3"}),
      With(kSampled, {"--n",
                      "3",
                      "--min-p",
                      "0.05",
                      "--frequency-penalty",
                      "0.5",
                      "--presence-penalty",
                      "0.2",
                      "--repetition-penalty",
                      "1.1",
                      "--logit-bias",
                      "77:2",
                      "--min-tokens",
                      "10",
                      "--stop-ids",
                      "50,51",
                      "--top-k",
                      "100",
                      "--top-p",
                      "0.95"}),
  };
  for (std::vector<std::string> flags : table) {
    // The first --max-tokens of a row with two would be an error: the last counts.
    const auto first = std::find(flags.begin(), flags.end(), "--max-tokens");
    if (std::find(first + 1, flags.end(), "--max-tokens") != flags.end()) flags.erase(first, first + 2);
    std::string trace;
    for (const std::string& flag : flags) trace += flag + " ";
    SCOPED_TRACE(trace);
    const std::string embedded = Print("--model", DemoDirectory(), flags);
    EXPECT_EQ(Print("--router", cluster_->router(), flags), embedded);
    EXPECT_TRUE(json::accept(embedded)) << embedded;
  }
  const Status status = cluster_->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(Sampling, TheParametersDoWhatTheySay) {
  const json plain = Embedded(kChat);
  EXPECT_EQ(plain["text"], "The LORD is my shepherd; I shall not want.");
  EXPECT_FALSE(plain.contains("logprobs"));
  EXPECT_FALSE(plain.contains("choices"));
  const json stopped = Embedded(With(kChat, {"--stop", "; I sh,shall not"}));
  EXPECT_EQ(stopped["text"], "The LORD is my shepherd");
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["matched_stop"], "; I sh");
  EXPECT_LT(stopped["completion_tokens"], plain["completion_tokens"]);
  EXPECT_GT(Embedded(With(kChat, {"--min-tokens", "40"}))["completion_tokens"], 40);

  const json choices = Embedded(With(kSampled, {"--n", "4", "--logprobs", "2"}));
  ASSERT_EQ(choices["choices"].size(), 4u);
  EXPECT_EQ(choices["choices"][0]["token_ids"], choices["token_ids"]);
  std::vector<std::string> alone = kSampled;
  for (int i = 0; i < 4; ++i) {
    *(std::find(alone.begin(), alone.end(), "--seed") + 1) = std::to_string(41 + i);
    const json one = Embedded(With(alone, {"--logprobs", "2"}));
    for (const char* field : {"token_ids", "text", "logprobs"})
      EXPECT_EQ(choices["choices"][i][field], one[field]) << i;
    ASSERT_EQ(one["logprobs"].size(), one["token_ids"].size());
    EXPECT_EQ(one["logprobs"][0]["top"].size(), 2u);
  }
  const json prompt = Embedded(With(kChat, {"--prompt-logprobs", "1"}));
  EXPECT_EQ(prompt["prompt_logprobs"].size(), prompt["prompt_tokens"].get<size_t>() - 1);
}

TEST_F(Sampling, AStoppedStreamEndsAtOnceAndHoldsNothing) {
  client::Client client(cluster_->router());
  client::GenerateRequest request = ChatRequest("Psalms 23:1", 4000);
  request.stop = {" is my"};
  request.ignore_eos = true;
  const Output output = Ask(client, request);
  ASSERT_TRUE(output.status.ok()) << output.status.message;
  EXPECT_EQ(output.text, "The LORD");
  EXPECT_EQ(output.finish_reason, "stop");
  EXPECT_LT(output.ids.size(), 20u);
  const Status status = cluster_->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(Sampling, AResumedStreamStopsWhereTheWholeOneDoes) {
  client::Client client(cluster_->router());
  client::GenerateRequest request = ChatRequest("Psalms 23:1", 100);
  request.stop = {"shepherd; I shall"};
  request.frequency_penalty = 0.01f;
  const Output whole = Ask(client, request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.message;
  EXPECT_EQ(whole.text, "The LORD is my ");
  for (size_t have = 1; have <= whole.ids.size(); ++have) {
    request.resume_tokens.assign(whole.ids.begin(), whole.ids.begin() + static_cast<ptrdiff_t>(have));
    const Output rest = Ask(client, request);
    ASSERT_TRUE(rest.status.ok()) << rest.status.message;
    EXPECT_EQ(rest.ids,
              std::vector<int32_t>(whole.ids.begin() + static_cast<ptrdiff_t>(have), whole.ids.end()));
    EXPECT_TRUE(whole.text.ends_with(rest.text)) << rest.text;
    EXPECT_EQ(rest.finish_reason, "stop");
  }
}

TEST_F(Sampling, ChoicesOfConcurrentRequestsAreTheirOwn) {
  constexpr int kRequests = 4, kChoices = 4;
  std::vector<int32_t> prompt;
  for (int i = 0; i < 300; ++i) prompt.push_back(7 + i * 31 % 4000);
  client::GenerateRequest request = IdsRequest(prompt, 20, 1.f, 900);
  const auto embedded = MustLoad(DemoDirectory());
  std::vector<std::vector<int32_t>> want;
  for (int i = 0; i < kChoices; ++i)
    want.push_back(EmbeddedTokens(*embedded, IdsRequest(prompt, 20, 1.f, 900 + i)));
  request.n = kChoices;
  std::vector<std::thread> threads;
  for (int t = 0; t < kRequests; ++t)
    threads.emplace_back([&] {
      client::Client client(cluster_->router());
      std::vector<std::vector<int32_t>> got(kChoices);
      int finished = 0;
      auto stream = client.Generate(request);
      client::Event event;
      while (stream->Next(&event)) {
        auto& ids = got.at(event.choice);
        ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
        finished += event.kind == client::Event::Kind::kFinished;
      }
      EXPECT_TRUE(stream->Finish().ok());
      EXPECT_EQ(finished, kChoices);
      EXPECT_EQ(got, want);
    });
  for (auto& thread : threads) thread.join();
  const Status status = cluster_->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(Sampling, LeavingEndsEveryChoice) {
  client::Client client(cluster_->router());
  client::GenerateRequest request = IdsRequest({8, 9, 10}, 3000, 1.f, 1);
  request.n = 8;
  auto stream = client.Generate(request);
  client::Event event;
  for (size_t seen = 0; seen < 30 && stream->Next(&event);) seen += event.token_ids.size();
  stream->Cancel();
  (void)stream->Finish();
  const Status status = cluster_->WaitNothingHeld(kSettled);
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace cachalot::testing
