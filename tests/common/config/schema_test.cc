#include "common/config/schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace cachalot {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

struct Config {
  std::string listen = "127.0.0.1:0", mode = "exact";
  int max_batch = 32;
  int64_t blocks = 1;
  double ratio = 0.5;
  bool draft = true;
  Duration grace = milliseconds(3000);
  std::vector<std::string> experts;
};

class SchemaTest : public testing::Test {
 protected:
  SchemaTest() {
    schema_.Add("listen", &config_.listen, "host:port to listen on", NotEmpty());
    schema_.Add("numeric-mode", &config_.mode, "arithmetic", OneOf({"exact", "bf16"}));
    schema_.Add("max-batch", &config_.max_batch, "sequences per step", Range(1, 4096));
    schema_.Add("blocks", &config_.blocks, "KV blocks");
    schema_.Add("ratio", &config_.ratio, "share", Range(0.0, 1.0));
    schema_.Add("draft", &config_.draft, "speculate");
    schema_.AddMilliseconds("grace-ms", &config_.grace, "how long a lost session keeps its leases");
    schema_.Add("experts", &config_.experts, "expert services");
  }
  ~SchemaTest() override { std::remove(path_.c_str()); }

  StatusOr<ParsedArgs> Parse(std::vector<std::string> words) { return schema_.Parse(words); }
  StatusOr<ParsedArgs> ParseFile(const std::string& yaml, std::vector<std::string> words = {}) {
    std::ofstream(path_) << yaml;
    words.push_back("--config=" + path_);
    return schema_.Parse(words);
  }

  const std::string path_ = testing::TempDir() + "schema_test.yaml";
  Config config_;
  ConfigSchema schema_{"cachalot-test", "Tests."};
};

TEST_F(SchemaTest, AbsentMeansDefault) {
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(config_.max_batch, 32);
  EXPECT_TRUE(config_.draft);
  EXPECT_FALSE(schema_.Given("draft"));
}

TEST_F(SchemaTest, RefusesWordsThatNoFlagTakes) {
  const auto args = Parse({"--max-batch", "1", "2"});
  EXPECT_EQ(args.status(), InvalidArgument("unexpected argument \"2\": it belongs to no flag (a value with spaces "
                                           "stands in quotes)"));
}

TEST_F(SchemaTest, ReadsEveryKindOfFlag) {
  schema_.TakePositional();
  const auto args = Parse({"first", "--listen", "0.0.0.0:1", "--numeric-mode=bf16", "--max-batch=64",
                           "--blocks", "-5000000000", "--ratio=0.25", "--no-draft", "--grace-ms=0.5",
                           "--experts=a:1,b:2", "--", "--last"});
  ASSERT_TRUE(args.ok()) << args.status();
  EXPECT_THAT(args->positional, ElementsAre("first", "--last"));
  EXPECT_EQ(config_.listen, "0.0.0.0:1");
  EXPECT_EQ(config_.mode, "bf16");
  EXPECT_EQ(config_.max_batch, 64);
  EXPECT_EQ(config_.blocks, -5'000'000'000);
  EXPECT_EQ(config_.ratio, 0.25);
  EXPECT_FALSE(config_.draft);
  EXPECT_EQ(config_.grace, microseconds(500));
  EXPECT_THAT(config_.experts, ElementsAre("a:1", "b:2"));
  EXPECT_TRUE(schema_.Given("draft"));
  EXPECT_THAT(schema_.Dump(), AllOf(HasSubstr("grace-ms=0.5\n"), HasSubstr("experts=a:1,b:2\n")));
}

TEST_F(SchemaTest, ReadsYamlAndFlagsWin) {
  const auto args =
      ParseFile("max_batch: 8\nnumeric-mode: bf16\ndraft: false\nexperts: [a:1, b:2]\ngrace_ms: 20\n",
                {"--max-batch=9", "--draft"});
  ASSERT_TRUE(args.ok()) << args.status();
  EXPECT_EQ(config_.max_batch, 9);
  EXPECT_EQ(config_.mode, "bf16");
  EXPECT_TRUE(config_.draft);
  EXPECT_THAT(config_.experts, ElementsAre("a:1", "b:2"));
  EXPECT_EQ(config_.grace, milliseconds(20));
  EXPECT_TRUE(ParseFile("").ok());
}

TEST_F(SchemaTest, RefusesBadFlagsByName) {
  const struct {
    std::vector<std::string> words;
    const char *name, *accepted;
  } cases[] = {
      {{"--max-bach=3"}, "--max-bach", "(did you mean --max-batch?)"},
      {{"--zzzzzzzzzz=3"}, "--zzzzzzzzzz", "--help"},
      {{"-x"}, "-x", "begin with --"},
      {{"--max-batch"}, "--max-batch", "needs a value (integer)"},
      {{"--max-batch", "--draft"}, "--max-batch", "needs a value"},
      {{"--max-batch="}, "--max-batch", "an integer"},
      {{"--max-batch=3x"}, "--max-batch", "an integer, got '3x'"},
      {{"--max-batch=3.5"}, "--max-batch", "an integer"},
      {{"--max-batch=99999999999"}, "--max-batch", "from -2147483648 to 2147483647"},
      {{"--max-batch=99999999999999999999999"}, "--max-batch", "an integer from"},
      {{"--max-batch=0"}, "--max-batch", "1 to 4096, got 0"},
      {{"--ratio=half"}, "--ratio", "a number"},
      {{"--ratio=nan"}, "--ratio", "a number"},
      {{"--ratio=1.5"}, "--ratio", "0 to 1"},
      {{"--draft=maybe"}, "--draft", "true or false"},
      {{"--no-draft=true"}, "--no-draft", "no value"},
      {{"--no-ratio"}, "--no-ratio", ""},
      {{"--draft", "--no-draft"}, "--draft", "given twice"},
      {{"--ratio=0.1", "--ratio=0.2"}, "--ratio", "given twice"},
      {{"--grace-ms=-1"}, "--grace-ms", "milliseconds, at least 0"},
      {{"--experts=a,,b"}, "--experts", "without empty items"},
      {{"--numeric-mode=fp8"}, "--numeric-mode", "one of exact,bf16"},
      {{"--listen="}, "--listen", "not be empty"},
      {{"--config=/nonexistent.yaml"}, "--config", "/nonexistent.yaml"},
      {{"--config=/"}, "/: ", "directory"},
  };
  for (const auto& bad : cases) {
    const Status status = Parse(bad.words).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad.words[0];
    EXPECT_THAT(StatusMessage(status), AllOf(HasSubstr(bad.name), HasSubstr(bad.accepted)));
  }
}

TEST_F(SchemaTest, RefusesBadFilesByKey) {
  const struct {
    const char *yaml, *name, *accepted;
  } cases[] = {
      {"max_bach: 3\n", "max-bach", "(did you mean max-batch?)"},
      {"max_batch: many\n", "max_batch", "an integer"},
      {"max_batch: [1]\n", "max_batch", "one value"},
      {"max_batch: {a: 1}\n", "max_batch", "one value"},
      {"max_batch:\n", "max_batch", "needs a value"},
      {"max_batch: 1\nmax-batch: 2\n", "max-batch", "given twice"},
      {"experts: {a: 1}\n", "experts", "a list"},
      {"experts: [[a]]\n", "experts", "plain values"},
      {"draft: yes\n", "draft", "true or false"},
      {"config: other.yaml\n", "config", "unknown key"},
      {"- a\n- b\n", "schema_test.yaml", "name: value"},
      {"a: [\n", "schema_test.yaml", "line"},
      {"{a: 1}: 2\n", "schema_test.yaml", "plain word"},
  };
  for (const auto& bad : cases) {
    const Status status = ParseFile(bad.yaml).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad.yaml;
    EXPECT_THAT(StatusMessage(status), AllOf(HasSubstr(bad.name), HasSubstr(bad.accepted)));
  }
}

TEST_F(SchemaTest, ChecksRelationsAndWhatIsRequired) {
  schema_.Require("experts");
  schema_.Check([this] {
    return config_.max_batch > config_.blocks ? InvalidArgument("--max-batch must not exceed --blocks")
                                              : OkStatus();
  });
  EXPECT_THAT(StatusMessage(Parse({}).status()), HasSubstr("--experts is required"));
  EXPECT_THAT(StatusMessage(Parse({"--experts=a"}).status()), HasSubstr("must not exceed --blocks"));
  EXPECT_TRUE(Parse({"--experts=a", "--blocks=100"}).ok());
}

/// A program that starts another one with flags of its own and of its user.
class ForwardTest : public testing::Test {
 protected:
  ForwardTest() {
    inner_.Add("max-batch", &batch_, "sequences per step", Range(1, 4096));
    inner_.Add("draft", &draft_, "speculate");
    inner_.Add("experts", &experts_, "expert services");
    inner_.Add("listen", &listen_, "host:port");
    inner_.Require("listen");  // the other program's business
    outer_.Add("decode", &workers_, "how many workers");
    outer_.Forward("decode", inner_, &given_, {{"listen", "each gets a port of its own"}, {"config", "not here"}});
  }

  int batch_ = 1, workers_ = 1;
  bool draft_ = true;
  std::string listen_;
  std::vector<std::string> experts_;
  std::map<std::string, std::string> given_;
  ConfigSchema inner_{"cachalot-decode", "Decodes."}, outer_{"cachalot up", "Starts."};
};

TEST_F(ForwardTest, CollectsWhatIsGiven) {
  ASSERT_TRUE(outer_.Parse({"--decode-max-batch", "7", "--decode=2", "--no-decode-draft", "--decode-experts=a:1,b:2"}).ok());
  EXPECT_EQ(workers_, 2);
  EXPECT_EQ(batch_, 7);
  EXPECT_FALSE(draft_);
  EXPECT_THAT(given_, ElementsAre(testing::Pair("draft", "false"), testing::Pair("experts", "a:1,b:2"),
                                  testing::Pair("max-batch", "7")));
}

TEST_F(ForwardTest, FlagsWinOverTheFile) {
  const std::string path = testing::TempDir() + "forward_test.yaml";
  std::ofstream(path) << "decode_max_batch: 3\ndecode-experts: [a:1, b:2]\n";
  ASSERT_TRUE(outer_.Parse({"--config", path, "--decode-max-batch=4"}).ok());
  EXPECT_THAT(given_, ElementsAre(testing::Pair("experts", "a:1,b:2"), testing::Pair("max-batch", "4")));
  std::ofstream(path) << "decode_listen: a:1\n";
  EXPECT_THAT(StatusMessage(outer_.Parse({"--config", path}).status()), HasSubstr("decode_listen: each gets a port"));
  std::remove(path.c_str());
}

TEST_F(ForwardTest, NamesFlagsAsTheyWereWritten) {
  const struct {
    std::vector<std::string> words;
    const char* says;
  } cases[] = {
      {{"--decode-max-batc=1"}, "unknown flag --decode-max-batc (did you mean --decode-max-batch?)"},
      {{"--decode-max-batch=0"}, "--decode-max-batch: expected 1 to 4096, got 0"},
      {{"--decode-max-batch"}, "--decode-max-batch needs a value (integer)"},
      {{"--decode-max-batch=1", "--decode-max-batch=1"}, "--decode-max-batch is given twice"},
      {{"--decode-listen=a:1"}, "--decode-listen: each gets a port of its own"},
      {{"--decode-listen"}, "--decode-listen: each gets a port of its own"},
      {{"--decode-config=x"}, "--decode-config: not here"},
      {{"--decode-lister=x"}, "unknown flag --decode-lister"},
  };
  for (const auto& bad : cases) EXPECT_THAT(StatusMessage(outer_.Parse(bad.words).status()), HasSubstr(bad.says));
  EXPECT_THAT(StatusMessage(outer_.Parse({"--decode-liste=x"}).status()), testing::Not(HasSubstr("decode-listen?")));
}

TEST_F(ForwardTest, HelpPointsToTheOtherProgram) {
  EXPECT_THAT(outer_.Help(), AllOf(HasSubstr("--decode-FLAG\n      FLAG of cachalot-decode, which cachalot-decode --help lists\n"),
                                   testing::Not(HasSubstr("max-batch"))));
}

TEST_F(SchemaTest, HelpListsEverythingWithTheDefaults) {
  EXPECT_TRUE(Parse({"--max-batch=7", "--help", "--nonsense"})->help);
  ASSERT_TRUE(Parse({"--max-batch=7"}).ok());
  EXPECT_THAT(schema_.Help(), AllOf(HasSubstr("--max-batch=integer\n      sequences per step (default 32)"),
                                    HasSubstr("--[no-]draft"), HasSubstr("--config=text"),
                                    HasSubstr("--grace-ms=milliseconds"), HasSubstr("(default 3000)")));
}

}  // namespace
}  // namespace cachalot
