// The public API of a model with a tokenizer: text and chat in, text out.

#include <gmock/gmock.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "tests/router/served.h"
#include "tests/support/oracle.h"

namespace cachalot::testing {
namespace {

using client::GenerateRequest;
using ::testing::HasSubstr;

/// The shipped checkpoint, loaded once.
class DemoServiceTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    served_ = new Served(DemoDirectory());
    served_->Open();
  }
  static void TearDownTestSuite() {
    delete served_;
    served_ = nullptr;
  }
  static inline Served* served_ = nullptr;
};

TEST_F(DemoServiceTest, QuotesTheGoldenVerses) {
  std::ifstream file(DemoDirectory() + "/golden.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  for (size_t i = 0; i < 4; ++i) {
    const auto prompt = golden[i]["prompt"].get<std::string>();
    GenerateRequest request;
    request.chat = {{"user", prompt}};
    request.temperature = 0.f;
    request.max_tokens = 200;
    request.timeout_ms = kTimeoutMs;
    const Output output = Generate(served_->client(), request);
    ASSERT_TRUE(output.status.ok()) << output.status.message;
    EXPECT_EQ(output.tokens, golden[i]["token_ids"].get<std::vector<int32_t>>()) << prompt;
    EXPECT_EQ(output.text, golden[i]["text"].get<std::string>());
    EXPECT_EQ(output.events.back().finish_reason, "stop");
    EXPECT_EQ(output.events.front().prompt_tokens, static_cast<int>(golden[i]["prompt_ids"].size()));
  }
  EXPECT_TRUE(served_->EventuallyAllFree());
}

TEST_F(DemoServiceTest, TheTextIsTheWholeOutputsInPieces) {
  const Tokenizer& tokenizer = *served_->tokenizer();
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    GenerateRequest request;
    request.text = "é漢字 \xF0\x9F\x90\xB3";  // at this temperature bytes of broken characters come too
    request.temperature = 50.f;
    request.seed = seed;
    request.max_tokens = 60;
    request.ignore_eos = true;
    request.timeout_ms = kTimeoutMs;
    const Output whole = Generate(served_->client(), request);
    ASSERT_TRUE(whole.status.ok()) << whole.status.message;
    EXPECT_EQ(whole.text, DecodeText(tokenizer, whole.tokens));
    // A stream that goes on behind some of the tokens goes on behind their text too, even inside a character.
    for (size_t have = 1; have < whole.tokens.size(); have += 13) {
      StreamDecoder decoder(&tokenizer);
      std::string text;
      for (size_t i = 0; i < have; ++i) text += decoder.Push(whole.tokens[i]);
      request.resume_tokens.assign(whole.tokens.begin(), whole.tokens.begin() + have);
      const Output rest = Generate(served_->client(), request);
      ASSERT_TRUE(rest.status.ok()) << rest.status.message;
      EXPECT_EQ(text + rest.text, whole.text) << seed << " " << have;
    }
    request.resume_tokens.clear();
  }
}

TEST_F(DemoServiceTest, Tokenizes) {
  std::vector<int32_t> ids;
  const std::string text = "In the beginning <｜User｜> é漢字";
  ASSERT_TRUE(served_->client().Tokenize(text, &ids).ok());
  EXPECT_EQ(ids, *served_->tokenizer()->Encode(text, false));
  EXPECT_EQ(served_->tokenizer()->DecodeRaw(ids), text);
  ASSERT_TRUE(served_->client().Tokenize("", &ids).ok());
  EXPECT_TRUE(ids.empty());
  client::ModelInfo info;
  ASSERT_TRUE(served_->client().GetModelInfo(&info).ok());
  EXPECT_TRUE(info.has_tokenizer);
}

TEST_F(DemoServiceTest, TextThatCannotFitIsRefusedBeforeItIsTokenized) {
  const double before = served_->Counted("cachalot_router_long_texts_total");
  const std::string text(3 << 20, 'a');
  std::vector<GenerateRequest> requests(2);
  requests[0].text = text;
  requests[1].chat = {{"user", text}};
  for (GenerateRequest& request : requests) {
    request.timeout_ms = kTimeoutMs;
    const auto status = Generate(served_->client(), request).status;
    EXPECT_EQ(status.code, static_cast<int>(StatusCode::kOutOfRange)) << status.message;
    EXPECT_THAT(status.message, ::testing::ContainsRegex("3145728 bytes, at least [0-9]+ tokens"));
    EXPECT_THAT(status.message, HasSubstr("more than the context of 8192"));
  }
  EXPECT_EQ(served_->Counted("cachalot_router_long_texts_total"), before);
}

TEST_F(DemoServiceTest, LongTextsAreTokenizedAwayFromTheLoop) {
  const double before = served_->Counted("cachalot_router_long_texts_total");
  std::string text;
  while (text.size() < 100'000) text += "In the beginning " + std::to_string(text.size()) + " é漢字 ";
  std::vector<int32_t> ids;
  ASSERT_TRUE(served_->client().Tokenize(text, &ids).ok());
  EXPECT_EQ(ids, *served_->tokenizer()->Encode(text, false));
  EXPECT_EQ(served_->Counted("cachalot_router_long_texts_total"), before + 1);
  // Few bytes a token: only tokenizing tells that it is too long.
  GenerateRequest request;
  request.text = text;
  request.timeout_ms = kTimeoutMs;
  const auto status = Generate(served_->client(), request).status;
  EXPECT_EQ(status.code, static_cast<int>(StatusCode::kOutOfRange)) << status.message;
  EXPECT_THAT(status.message, HasSubstr("the prompt has " + std::to_string(ids.size()) + " tokens"));
  EXPECT_EQ(served_->Counted("cachalot_router_long_texts_total"), before + 2);
}

TEST_F(DemoServiceTest, ChatsOfManyMessagesAreWorkHoweverShortTheyAre) {
  const double before = served_->Counted("cachalot_router_long_texts_total");
  GenerateRequest request;
  request.timeout_ms = kTimeoutMs;
  request.chat.assign(8192, {"user", ""});
  (void)Generate(served_->client(), request);
  EXPECT_EQ(served_->Counted("cachalot_router_long_texts_total"), before + 1) << "tokenized on the loop";
  request.chat.assign(8193, {"user", ""});
  const auto status = Generate(served_->client(), request).status;
  EXPECT_EQ(status.code, static_cast<int>(StatusCode::kOutOfRange)) << status.message;
  EXPECT_THAT(status.message, HasSubstr("the chat has 8193 messages: more than the context of 8192 tokens"));
  EXPECT_EQ(served_->Counted("cachalot_router_long_texts_total"), before + 1);
}

TEST_F(DemoServiceTest, RefusesBadInput) {
  const auto refusal = [this](const std::function<void(GenerateRequest&)>& change) {
    GenerateRequest request;
    request.max_tokens = 4;
    request.timeout_ms = kTimeoutMs;
    change(request);
    return Generate(served_->client(), request).status;
  };
  constexpr int kInvalid = static_cast<int>(StatusCode::kInvalidArgument);
  const auto role = refusal([](auto& r) { r.chat = {{"user", "hello"}, {"tool", "hello"}}; });
  EXPECT_EQ(role.code, kInvalid);
  EXPECT_THAT(role.message, HasSubstr("tool"));
  const auto empty = refusal([](auto& r) { r.text = ""; });
  EXPECT_EQ(empty.code, kInvalid);
  EXPECT_THAT(empty.message, HasSubstr("the prompt has no tokens"));
  EXPECT_EQ(refusal([](auto&) {}).code, kInvalid);
}

}  // namespace
}  // namespace cachalot::testing
