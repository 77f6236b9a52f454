// Tokenizer files that are broken or are not what this tokenizer implements.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/common/tokenizer/test_tokenizers.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

std::string LoadError(const std::string& json) {
  const auto tokenizer = Tokenizer::FromJson(json, "dir/tokenizer.json");
  EXPECT_EQ(tokenizer.status().code(), StatusCode::kInvalidArgument);
  const std::string message = StatusMessage(tokenizer.status());
  EXPECT_THAT(message, testing::StartsWith("dir/tokenizer.json: "));
  return message;
}

TEST(LoadTest, MissingFile) {
  const auto tokenizer = Tokenizer::Load("/nowhere/tokenizer.json");
  EXPECT_EQ(tokenizer.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(StatusMessage(tokenizer.status()),
              testing::AllOf(HasSubstr("/nowhere/tokenizer.json"), HasSubstr("give its path")));
}

TEST(LoadTest, AFileThatIsThereButHasNothingIsNotMissing) {
  const auto directory = Tokenizer::Load(CACHALOT_SOURCE_DIR);
  EXPECT_EQ(directory.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(StatusMessage(directory.status()), HasSubstr("got a directory"));
  const std::string path = testing::TempDir() + "/empty_tokenizer.json";
  std::ofstream{path};
  const auto empty = Tokenizer::Load(path);
  EXPECT_EQ(empty.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(StatusMessage(empty.status()), testing::AllOf(HasSubstr(path), HasSubstr("got an empty one")));
}

TEST(LoadTest, NotJson) {
  EXPECT_THAT(LoadError("{\"model\": "), HasSubstr("not a readable tokenizer.json"));
  EXPECT_THAT(LoadError(""), HasSubstr("not a readable tokenizer.json"));
  EXPECT_THAT(LoadError("{\"model\": \"\xFF\"}"), HasSubstr("not a readable tokenizer.json"));
  EXPECT_THAT(LoadError("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(LoadError("{\"normalizer\": " + std::string(100'000, '[') + std::string(100'000, ']') + "}"),
              HasSubstr("more than 64 levels of nesting"));
}

struct Mutation {
  const char* name;
  std::function<void(Json&)> apply;
  const char* expected;  // in the error
};

Json& Steps(Json& j) { return j["pre_tokenizer"]["pretokenizers"]; }

const Mutation kMutations[] = {
    {"no model", [](Json& j) { j.erase("model"); }, "has no model"},
    {"no pre_tokenizer", [](Json& j) { j.erase("pre_tokenizer"); }, "has no pre_tokenizer"},
    {"null pre_tokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; }, "pre_tokenizer is null"},
    {"other pre_tokenizer",
     [](Json& j) {
       j["pre_tokenizer"] = {{"type", "Metaspace"}};
     },
     "Metaspace"},
    {"no steps", [](Json& j) { Steps(j) = Json::array(); }, "pre_tokenizer is"},
    {"step is no object", [](Json& j) { Steps(j)[0] = 5; }, "pretokenizers[0] is 5"},
    {"unknown step",
     [](Json& j) {
       Steps(j)[0] = {{"type", "Digits"}};
     },
     "pretokenizers[0] is {\"type\":\"Digits\"}"},
    {"string pattern",
     [](Json& j) {
       Steps(j)[0]["pattern"] = {{"String", "a"}};
     },
     "\"String\""},
    {"removed", [](Json& j) { Steps(j)[0]["behavior"] = "Removed"; }, "\"Removed\""},
    {"inverted", [](Json& j) { Steps(j)[0]["invert"] = true; }, "\"invert\":true"},
    {"no invert", [](Json& j) { Steps(j)[0].erase("invert"); }, "pretokenizers[0] is"},
    {"bad pattern", [](Json& j) { Steps(j)[0]["pattern"]["Regex"] = "(a"; },
     "pretokenizers[0]: the pattern '(a'"},
    {"empty pattern", [](Json& j) { Steps(j)[0]["pattern"]["Regex"] = "a*"; }, "can match nothing"},
    {"prefix space", [](Json& j) { Steps(j)[1]["add_prefix_space"] = true; }, "\"add_prefix_space\":true"},
    {"own regex", [](Json& j) { Steps(j)[1]["use_regex"] = true; }, "\"use_regex\":true"},
    {"default regex", [](Json& j) { Steps(j)[1].erase("use_regex"); }, "pretokenizers[1] is"},
    {"ByteLevel not last", [](Json& j) { std::swap(Steps(j)[0], Steps(j)[1]); }, "pretokenizers[0] is"},
    {"normalizer",
     [](Json& j) {
       j["normalizer"] = {{"type", "NFC"}};
     },
     "normalizer is {\"type\":\"NFC\"}"},
    {"decoder",
     [](Json& j) {
       j["decoder"] = {{"type", "Metaspace"}};
     },
     "decoder is"},
    {"model type", [](Json& j) { j["model"]["type"] = "Unigram"; }, "model.type is \"Unigram\""},
    {"model is no object", [](Json& j) { j["model"] = 3; }, "has no model with a type"},
    {"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, "model.dropout is 0.1"},
    {"byte fallback", [](Json& j) { j["model"]["byte_fallback"] = true; }, "model.byte_fallback"},
    {"ignore merges", [](Json& j) { j["model"]["ignore_merges"] = true; }, "model.ignore_merges"},
    {"prefix", [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, "continuing_subword_prefix"},
    {"no vocab", [](Json& j) { j["model"].erase("vocab"); }, "model.vocab must be"},
    {"vocab list", [](Json& j) { j["model"]["vocab"] = {"a"}; }, "model.vocab must be"},
    {"negative id", [](Json& j) { j["model"]["vocab"]["a"] = -1; }, "model.vocab['a'] is -1"},
    {"huge id", [](Json& j) { j["model"]["vocab"]["a"] = 1ull << 40; }, "model.vocab['a'] is 1099511627776"},
    {"text id", [](Json& j) { j["model"]["vocab"]["a"] = "7"; }, "model.vocab['a'] is \"7\""},
    {"fraction id", [](Json& j) { j["model"]["vocab"]["a"] = 1.5; }, "model.vocab['a'] is 1.5"},
    {"one id twice", [](Json& j) { j["model"]["vocab"]["a"] = int{'b'}; }, "model.vocab gives id 98"},
    {"missing byte", [](Json& j) { j["model"]["vocab"].erase("Ġ"); }, "no token for byte 32"},
    {"no merges", [](Json& j) { j["model"].erase("merges"); }, "model.merges must be"},
    {"one-sided merge", [](Json& j) { j["model"]["merges"][0] = "ab"; }, "model.merges[0] is \"ab\""},
    {"merge of three",
     [](Json& j) {
       j["model"]["merges"][0] = {"a", "b", "c"};
     },
     "model.merges[0]"},
    {"three in a string", [](Json& j) { j["model"]["merges"][0] = "a b c"; }, "model.merges[0]"},
    {"merge of numbers",
     [](Json& j) {
       j["model"]["merges"][0] = {1, 2};
     },
     "model.merges[0]"},
    {"unknown side",
     [](Json& j) {
       j["model"]["merges"][0] = {"a", "bb"};
     },
     "needs the token 'bb'"},
    {"unknown result",
     [](Json& j) {
       j["model"]["merges"][0] = {"a", "c"};
     },
     "needs the token 'ac'"},
    {"added object", [](Json& j) { j["added_tokens"] = Json::object(); }, "added_tokens must be an array"},
    {"added text", [](Json& j) { j["added_tokens"][0] = "x"; }, "added_tokens[0] is \"x\""},
    {"added without id", [](Json& j) { j["added_tokens"][0].erase("id"); }, "added_tokens[0]"},
    {"empty added", [](Json& j) { j["added_tokens"][0]["content"] = ""; }, "added_tokens[0]"},
    {"lstrip", [](Json& j) { j["added_tokens"][1]["lstrip"] = true; }, "lstrip true"},
    {"single word", [](Json& j) { j["added_tokens"][1]["single_word"] = true; }, "single_word true"},
    {"added twice", [](Json& j) { j["added_tokens"][1]["id"] = j["added_tokens"][0]["id"]; },
     "an earlier added token"},
    {"content twice", [](Json& j) { j["added_tokens"][1]["content"] = "<s>"; }, "repeats the content '<s>'"},
    {"added over vocab", [](Json& j) { j["added_tokens"][0]["id"] = 65; },
     "model.vocab gives to another token"},
    {"other id in vocab", [](Json& j) { j["added_tokens"][0]["content"] = "ab"; },
     "model.vocab gives 'ab' the id 256"},
    {"mergeable",
     [](Json& j) {
       j["added_tokens"][0].update(Json{{"content", "ab"}, {"id", 256}});
     },
     "plain text could become this token"},
};

TEST(LoadTest, TheUnchangedFileLoads) { EXPECT_NE(Made(SmallTokenizer({{"a", "b"}})), nullptr); }

TEST(LoadTest, EveryMutationIsRefusedByName) {
  for (const Mutation& mutation : kMutations) {
    SCOPED_TRACE(mutation.name);
    Json json = SmallTokenizer({{"a", "b"}});
    mutation.apply(json);
    EXPECT_THAT(LoadError(json.dump()), HasSubstr(mutation.expected));
  }
}

TEST(LoadTest, HarmlessVariantsLoad) {
  Json json = SmallTokenizer({{"a", "b"}});
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  json["model"]["dropout"] = nullptr;
  json["model"]["ignore_merges"] = false;
  json["model"]["end_of_word_suffix"] = "";
  json.erase("decoder");
  EXPECT_THAT(*Made(json)->Encode("ab", false), testing::ElementsAre(256));
  json.erase("added_tokens");
  EXPECT_EQ(Made(json)->vocab_size(), 257);
}

TEST(LoadTest, GapsInTheIdsHaveNoToken) {
  Json json = SmallTokenizer({});
  json["added_tokens"][1]["id"] = 300;
  const auto tokenizer = Made(json);
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(tokenizer->TokenBytes(299), "");
  EXPECT_FALSE(tokenizer->TokenId(""));
}

}  // namespace
}  // namespace cachalot
