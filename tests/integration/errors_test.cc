// Wrong flags and requests, row by row as in docs/errors.md: the exit or gRPC code, and what the
// message names. Checkpoints: errors_checkpoint_test.cc,
// peers: errors_peers_test.cc.

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>

#include "tests/integration/cluster_fixture.h"
#include "tests/support/broken_checkpoint.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown;
enum Code { kInvalidArgument = 3, kFailedPrecondition = 9, kOutOfRange = 11, kInternal = 13 };

// --- Command lines ---

struct LineCase {
  Words argv;
  int exit;
  Words says;
};

TEST(CommandLine, EachMistakeIsNamed) {
  const std::string tiny = TinyCheckpoint(), nowhere = Programs() / "nowhere";
  const auto with = [&](const Words& more) { return Generate(tiny, more); };
  const LineCase cases[] = {
      {{"cachalot"}, kUsage, {"usage: cachalot COMMAND"}},
      {{"cachalot", "generat"}, kUsage, {"unknown command \"generat\""}},
      {with({"--idz", "1"}), kUsage, {"unknown flag --idz (did you mean --ids?)"}},
      {with({"--ids", "1", "--ids", "2"}), kUsage, {"--ids is given twice"}},
      {with({"--ids", "1,", "2"}), kUsage, {"unexpected argument \"2\": it belongs to no flag"}},
      {with({"--ids"}), kUsage, {"--ids needs a value (text)"}},
      {with({"--ids", "1", "--config", nowhere}), kUsage, {"--config: cannot read '" + nowhere}},
      {with({}), kUsage, {"give exactly one of --ids, --ids-file, --prompt and --chat"}},
      {with({"--ids", "1", "--prompt", "x"}), kUsage, {"give exactly one of --ids, --ids-file, --prompt"}},
      {with({"--ids", "1", "--ids-file", nowhere}), kUsage, {"give one of --ids and --ids-file, not both"}},
      {with({"--ids-file", nowhere}), kFailed, {"--ids-file " + nowhere + ": cannot be read"}},
      {with({"--ids", "1,x"}), kUsage, {"--ids: \"x\" is no token id"}},
      {with({"--ids", "1", "--router", "127.0.0.1:1"}), kUsage, {"exactly one of --model DIR and --router"}},
      {{"cachalot", "generate", "--ids", "1"}, kUsage, {"exactly one of --model DIR and --router HOST:PORT"}},
      {{"cachalot", "generate", "--router", "127.0.0.1:1", "--ids", "1"},
       kFailed,
       {"127.0.0.1:1", "refused"}},
      {{"cachalot", "generate", "--router", "127.0.0.1:1", "--ids", "1", "--mode", "exact"},
       kUsage,
       {"--mode: the workers behind --router have their own; leave it out"}},
      {{"cachalot", "chat", "--router", "127.0.0.1:1", "--kernels", "ref"}, kUsage, {"--kernels: the workers behind"}},
      {{"cachalot", "demo", "--router", "127.0.0.1:1", "--threads", "4"}, kUsage, {"--threads: the workers behind"}},
      {with({"--ids", "1", "--logprobs", "5"}), kUsage, {"--logprobs: only --json prints log probabilities"}},
      {with({"--ids", "1", "--prompt-logprobs", "0"}), kUsage, {"--prompt-logprobs: only --json prints"}},
      {with({"--ids", "1", "--max-tokens", "three"}),
       kUsage,
       {"--max-tokens: expected an integer, got 'three'"}},
      {with({"--ids", "1", "--max-tokens", "0"}), kUsage, {"--max-tokens: expected 1 to 1048576, got 0"}},
      {with({"--ids", "1", "--mode", "fast"}), kUsage, {"--mode: expected one of exact,bf16, got 'fast'"}},
      {with({"--ids", "1", "--temperature", "-1"}), kUsage, {"--temperature: expected 0 to 100, got -1"}},
      {with({"--ids", "1", "--temperature", "nan"}), kUsage, {"--temperature: expected a number, got 'nan'"}},
      {with({"--ids", "1", "--top-p", "0"}), kUsage, {"top_p: wanted a number in (0, 1], got 0"}},
      {with({"--ids", "1", "--stop", std::string(65, '[') + std::string(65, ']')}),
       kUsage,
       {"--stop: wanted a JSON array of strings, got more than 64 levels of nesting"}},
      {with({"--ids", "1,512"}), kUsage, {"token id 512 is not in [0, 512)"}},
      {with({"--ids", "1,2", "--max-tokens", "4095"}), kFailed, {"4097 tokens exceed the context of 4096"}},
      {with({"--prompt", "Hello"}), kFailed, {"no tokenizer.json: give --ids instead of text"}},
      {Generate(DemoDirectory(), {"--prompt", "ab\xff"}), kUsage, {"not valid UTF-8 at byte 2"}},
      {Generate(DemoDirectory(), {"--chat", "ab\xc3"}),
       kUsage,
       {"message 0 (user) is not valid UTF-8 at byte 2"}},
      {Generate(nowhere), kFailed, {nowhere}},
      {{"cachalot", "logits", "--model", tiny, "--ids", "1"}, kUsage, {"--output is required"}},
      {{"cachalot", "logits", "--model", tiny, "--ids", "1,2", "--decode", "2", "--output", nowhere},
       kUsage,
       {"--decode 2: at least one of the 2 ids must be the prompt"}},
      {{"cachalot", "logits", "--model", tiny, "--ids", "1", "--output", nowhere + "/x"},
       kFailed,
       {nowhere, "No such file or directory"}},
      {{"cachalot", "logits", "--model", tiny, "--ids", "1", "--output", "/dev/null"},
       kFailed,
       {"/dev/null: wanted a regular file or a new name"}},
      {{"cachalot", "serve"}, kUsage, {"--model is required"}},
      {{"cachalot", "serve", "--model", nowhere, "--listen", "127.0.0.1:0"}, kFailed, {nowhere}},
      {{"cachalot", "serve", "--model", tiny, "--listen", "nonsense"},
       kUsage,
       {"--listen: expected host:port or unix:path, got \"nonsense\""}},
      {{"cachalot", "serve", "--model", tiny, "--listen", "127.0.0.1:99999"},
       kUsage,
       {"--listen: the port is \"99999\", wanted 0 to 65535"}},
      {{"cachalot-decode", "--model", tiny, "--experts", "local", "--metrics-listen", "9090"},
       kUsage,
       {"--metrics-listen: expected host:port with a port of 0 to 65535, got \"9090\""}},
      {{"cachalot", "serve", "--model", tiny, "--log-level", "loud"}, kUsage, {"--log-level", "got 'loud'"}},
      {{"cachalot", "up", "--model", tiny, "--expert-shards", "3"}, kUsage, {"wanted 0, 1, 2, 4 or 8"}},
      {{"cachalot", "up", "--model", nowhere}, kFailed, {nowhere, "exited with code 1 before it was ready"}},
      {{"cachalot-prefill", "--model", tiny}, kUsage, {"--experts is required"}},
      {{"cachalot-decode", "--experts", "local"}, kUsage, {"--model is required"}},
      {{"cachalot-decode", "--model", tiny, "--experts", "local", "--window", "1"},
       kUsage,
       {"--window: expected 32 to 1048576, got 1"}},
      {{"cachalot-decode", "--model", tiny, "--experts", "local", "--heartbeat-timeout-ms", "999"},
       kUsage,
       {"--heartbeat-timeout-ms: expected 1000 or more, got 999"}},
      {{"cachalot-decode", "--model", tiny, "--experts", "local", "--session-grace-ms", "0"},
       kUsage,
       {"--session-grace-ms: expected 1 or more, got 0"}},
      {{"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "a:1,dns:b:1,a:1"},
       kUsage,
       {"--decode: \"a:1\" is given twice"}},
      {{"cachalot-expert", "--model", tiny, "--shard", "0/3"},
       kUsage,
       {"shard \"0/3\": wanted i/N", "1, 2, 4, 8"}},
      {{"cachalot-expert", "--model", tiny, "--shard", "8/8"},
       kUsage,
       {"shard \"8/8\": wanted i/N with i in [0, N)"}},
      {{"cachalot-router", "--prefill", "127.0.0.1:1"}, kUsage, {"--decode is required"}},
      {{"cachalot-router", "--prefill", "dns:workers", "--decode", "127.0.0.1:1"},
       kUsage,
       {"--prefill: \"dns:workers\": wanted dns:NAME:PORT"}},
      {{"cachalot-decode", "--model", tiny, "--experts", "127.0.0.1:1,dns:///x:1"},
       kUsage,
       {"--experts: \"dns:///x:1\": wanted dns:NAME:PORT"}},
      {{"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1", "--listen", "127.0.0.1:0",
        "--dns-server", "nowhere"},
       kUsage,
       {"DNS server \"nowhere\": wanted IP:PORT"}},
      {{"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1", "--dns-interval-ms", "1"},
       kUsage,
       {"--dns-interval-ms: expected 10 or more, got 1"}},
      {{"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1", "--max-requests", "0"},
       kUsage,
       {"--max-requests: expected 1 to 4294967296, got 0"}},
      {{"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1", "--placement-wait-ms", "0"},
       kUsage,
       {"--placement-wait-ms: expected 1 or more, got 0"}},
      {{"cachalot", "inspect"}, kUsage, {"wanted one checkpoint directory, got 0: cachalot inspect DIR"}},
      {{"cachalot", "inspect", tiny, tiny}, kUsage, {"wanted one checkpoint directory, got 2: cachalot inspect DIR"}},
      {{"cachalot-router", "--config", "/"}, kUsage, {"/: ", "directory"}},
      {{"cachalot-router", "--prefill", "workers", "--decode", "127.0.0.1:1"},
       kUsage,
       {"--prefill: \"workers\": wanted HOST:PORT with a port in 1 to 65535"}},
      {{"cachalot-decode", "--model", tiny, "--experts", "locl"}, kUsage, {"--experts: \"locl\": wanted HOST:PORT"}},
      {{"cachalot", "generate", "--router", "localhost", "--ids", "1"},
       kUsage,
       {"--router: \"localhost\": wanted HOST:PORT with a port in 1 to 65535"}},
      {{"cachalot", "generate", "--router", "http://127.0.0.1:8000", "--ids", "1"},
       kUsage,
       {"--router: \"http://127.0.0.1:8000\": wanted HOST:PORT", "without a scheme"}},
      {{"cachalot", "generate", "--router", ",", "--ids", "1"}, kUsage, {"--router: expected a comma-separated list"}},
      {{"cachalot-decode", "--model", tiny, "--experts", "local", "--kv-tokens", "1099511627776"},
       kFailed,
       {"no memory for ", "1099511627776 tokens", "lower --kv-tokens or --max-sequences"}},
      {{"cachalot-prefill", "--model", tiny, "--experts", "local", "--kv-tokens", "1099511627776"},
       kFailed,
       {"no memory for ", "lower --kv-tokens or --max-sequences"}},
      {{"cachalot", "serve", "--model", tiny, "--listen", "127.0.0.1:0", "--kv-tokens", "1099511627776"},
       kFailed,
       {"no memory for ", "lower --kv-tokens or --max-sequences"}},
      {{"cachalot", "generate", "--router", "127.0.0.1:1,127.0.0.1:2", "--ids", "1"},
       kFailed,
       {"no router answers: 127.0.0.1:1: ", "; 127.0.0.1:2: "}},
  };
  for (const LineCase& line : cases) {
    std::string text;
    for (const std::string& word : line.argv) text += word + " ";
    SCOPED_TRACE(text);
    ExpectFails(line.argv, line.exit, line.says);
  }
  EXPECT_THAT(RunningWith(nowhere), IsEmpty());
}

TEST(CommandLine, CheckConfigSaysWhetherItIsValidAndServesNothing) {
  const std::string nowhere = Programs() / "nowhere";  // no weights are looked for
  const Words lines[] = {{"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1"},
                         {"cachalot-prefill", "--model", nowhere, "--experts", "local"},
                         {"cachalot-decode", "--model", nowhere, "--experts", "dns:experts:1"},
                         {"cachalot-expert", "--model", nowhere, "--shard", "7/8"},
                         {"cachalot", "serve", "--model", nowhere},
                         {"cachalot", "up", "--model", nowhere, "--router-max-requests", "5"}};
  for (Words argv : lines) {
    SCOPED_TRACE(argv[0] + " " + argv[1]);
    argv.push_back("--check-config");
    Programs programs;
    const Ended valid = programs.Run(argv);
    EXPECT_EQ(valid.exit.ToString(), ChildExit{}.ToString()) << valid.err;
    EXPECT_EQ(valid.out, "configuration is valid\n");
    EXPECT_EQ(valid.err, "");
    argv.insert(argv.end(), {"--log-level", "loud"});
    ExpectFails(argv, kUsage, {"--log-level: expected one of debug,info,warning,error, got 'loud'"});
  }
  ExpectFails({"cachalot-expert", "--model", nowhere, "--shard", "8/8", "--check-config"}, kUsage, {"--shard: "});
  ExpectFails({"cachalot-decode", "--model", nowhere, "--experts", "local,a:1", "--check-config"}, kUsage,
              {"--experts: local stands alone"});
}

/// A port of loopback that this process listens on.
class HeldPort {
 public:
  HeldPort() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 1), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = std::to_string(ntohs(address.sin_port));
  }
  ~HeldPort() { close(fd_); }
  const std::string& port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + port_; }

 private:
  const int fd_;
  std::string port_;
};

TEST(Port, InUseEndsEveryServer) {
  const HeldPort held;
  const std::string tiny = TinyCheckpoint();
  for (const char* flag : {"--listen", "--metrics-listen"}) {
    const Words servers[] = {{"cachalot", "serve", "--model", tiny},
                             {"cachalot-prefill", "--model", tiny, "--experts", "local"},
                             {"cachalot-decode", "--model", tiny, "--experts", "local"},
                             {"cachalot-expert", "--model", tiny, "--shard", "0/1"},
                             {"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1"}};
    for (Words argv : servers) {
      SCOPED_TRACE(argv[0] + " " + flag);
      argv.insert(argv.end(), {flag, held.address()});
      if (flag == std::string("--metrics-listen")) argv.insert(argv.end(), {"--listen", "127.0.0.1:0"});
      ExpectFails(argv, kFailed, {held.address() + ": Address already in use"});
    }
  }
  ExpectFails({"cachalot", "up", "--model", tiny, "--grpc-port", held.port()}, kFailed,
              {held.address() + ": Address already in use", "cachalot-router exited with code 1"});
  EXPECT_THAT(RunningWith(held.address()), IsEmpty());
}

TEST(SocketFile, ThatCannotBeMadeEndsEveryServer) {
  const std::string tiny = TinyCheckpoint();
  const Programs folder;
  WriteText(folder / "file", "");
  const std::string missing = folder / "missing", file = folder / "file", long_name(200, 'x');
  const struct {
    std::string path;
    int exit;
    Words says;
  } cases[] = {
      {missing + "/x", kFailed, {"cannot listen on unix:" + missing + "/x: directory " + missing + ": No such file"}},
      {file + "/x", kFailed, {"cannot listen on unix:" + file + "/x: " + file + " is no directory"}},
      {file, kFailed, {"cannot listen on unix:" + file + ": " + file + " is there and is no socket"}},
      {"/tmp/" + long_name, kUsage, {"the path has 205 bytes, wanted at most 107"}},
  };
  const Words servers[] = {{"cachalot", "serve", "--model", tiny},
                           {"cachalot-prefill", "--model", tiny, "--experts", "local"},
                           {"cachalot-decode", "--model", tiny, "--experts", "local"},
                           {"cachalot-expert", "--model", tiny, "--shard", "0/1"},
                           {"cachalot-router", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1"}};
  for (const auto& wrong : cases)
    for (Words argv : servers) {
      SCOPED_TRACE(argv[0] + " unix:" + wrong.path);
      argv.insert(argv.end(), {"--listen", "unix:" + wrong.path});
      ExpectFails(argv, wrong.exit, wrong.says);
    }
}

TEST(SocketFile, ServesAndIsNamedByTheReadyLine) {
  Programs programs;
  const std::string address = "unix:" + (programs / "socket");
  const auto expert = programs.Start({"cachalot-expert", "--model", TinyCheckpoint(), "--listen", address});
  const auto ready = expert->WaitReady(std::chrono::steady_clock::now() + kSettled);
  ASSERT_TRUE(ready.ok()) << ready.status() << ReadText(programs.log());
  EXPECT_EQ(*ready, address);
  EXPECT_TRUE(ProcessCluster::Describe(*ready).ok());
  expert->Signal(SIGTERM);
  EXPECT_EQ(programs.End(*expert).exit.code, 0);
}

// --- A full disk ---

/// Logits of 200 KiB, 100 rows of 512 floats, into a folder of their own.
struct LogitsToDisk {
  LogitsToDisk() {
    std::filesystem::create_directory(disk);
    std::string ids;
    for (int i = 0; i < 100; ++i) ids += std::to_string(i) + ",";
    WriteText(folder / "ids", ids);
  }
  const Programs folder;
  const std::string disk = folder / "disk", file = disk + "/logits.safetensors";
  const Words argv = {"cachalot",   "logits",       "--model",  TinyCheckpoint(),
                      "--ids-file", folder / "ids", "--output", file};
};

TEST(Disk, FullLeavesAnErrorAndNoFile) {
  const LogitsToDisk logits;
  if (mount("tmpfs", logits.disk.c_str(), "tmpfs", 0, "size=64k") != 0)
    GTEST_SKIP() << "no right to mount a small disk: " << std::strerror(errno);
  ExpectFails(logits.argv, kFailed, {logits.file + ": write: No space left on device"});
  EXPECT_TRUE(std::filesystem::is_empty(logits.disk));
  EXPECT_EQ(umount2(logits.disk.c_str(), MNT_DETACH), 0);
}

TEST(Disk, ALimitOfFileSizesLeavesAnErrorAndNoFile) {
  const LogitsToDisk logits;
  rlimit before{};  // the child takes it over
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{64 << 10, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_DFL);  // the child takes this over too
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  ExpectFails(logits.argv, kFailed, {logits.file + ": write: File too large"});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(std::filesystem::is_empty(logits.disk));
}

// --- Requests ---

struct RequestCase {
  const char* name;
  std::function<void(client::GenerateRequest&)> spoil;
  int code;
  Words says;
};

void ExpectRefused(client::Client& client, const client::GenerateRequest& good, const RequestCase& wrong) {
  SCOPED_TRACE(wrong.name);
  client::GenerateRequest request = good;
  wrong.spoil(request);
  const Output output = Ask(client, request);
  EXPECT_EQ(output.status.code, wrong.code) << output.status.message;
  EXPECT_THAT(output.ids, IsEmpty());
  ExpectSays(output.status.message, wrong.says);
}

TEST(Request, WrongOnesAreRefusedAndTheClusterGoesOn) {
  const auto cluster = MustStart({.model = DemoDirectory()});
  ASSERT_TRUE(cluster);
  client::Client client(cluster->router());
  const RequestCase cases[] = {
      {"id out of the vocabulary",
       [](auto& r) {
         r.token_ids = {{1, 4096}};
       },
       kInvalidArgument,
       {"token_ids[1] is 4096", "[0, 4096)"}},
      {"negative id", [](auto& r) { r.token_ids = {{-1}}; }, kInvalidArgument, {"token_ids[0] is -1"}},
      {"no ids", [](auto& r) { r.token_ids.emplace(); }, kInvalidArgument, {"the prompt has no tokens"}},
      {"no input",
       [](auto& r) { r.token_ids.reset(); },
       kInvalidArgument,
       {"one of token_ids, text and chat"}},
      {"two inputs", [](auto& r) { r.text = "x"; }, kInvalidArgument, {"one of token_ids, text and chat"}},
      {"prompt over the limit",
       [](auto& r) { r.token_ids.emplace(9000, 5); },
       kOutOfRange,
       {"9000 tokens", "context of 8192"}},
      {"prompt and output over the limit",
       [](auto& r) { r.max_tokens = 8192; },
       kOutOfRange,
       {"max_tokens is 8192", "context of 8192"}},
      {"max_tokens 0",
       [](auto& r) { r.max_tokens = 0; },
       kInvalidArgument,
       {"max_tokens is 0, wanted at least 1"}},
      {"temperature < 0",
       [](auto& r) { r.temperature = -1.f; },
       kInvalidArgument,
       {"temperature: wanted a finite"}},
      {"temperature NaN",
       [](auto& r) { r.temperature = NAN; },
       kInvalidArgument,
       {"temperature:", "got nan"}},
      {"top_k < 0", [](auto& r) { r.top_k = -1; }, kInvalidArgument, {"top_k: wanted a number >= 0, got -1"}},
      {"top_p 0",
       [](auto& r) { r.top_p = 0.f; },
       kInvalidArgument,
       {"top_p: wanted a number in (0, 1], got 0"}},
      {"top_p > 1",
       [](auto& r) { r.top_p = 1.5f; },
       kInvalidArgument,
       {"top_p: wanted a number in (0, 1], got 1.5"}},
      {"min_p > 1",
       [](auto& r) { r.min_p = 2.f; },
       kInvalidArgument,
       {"min_p: wanted a number in [0, 1], got 2"}},
      {"frequency_penalty",
       [](auto& r) { r.frequency_penalty = 3.f; },
       kInvalidArgument,
       {"frequency_penalty:", "3"}},
      {"repetition_penalty 0",
       [](auto& r) { r.repetition_penalty = 0.f; },
       kInvalidArgument,
       {"repetition_penalty:"}},
      {"logit_bias of no token",
       [](auto& r) {
         r.logit_bias = {{4096, 1.f}};
       },
       kInvalidArgument,
       {"logit_bias: wanted a token id in [0, 4096), got 4096"}},
      {"n 0", [](auto& r) { r.n = 0; }, kInvalidArgument, {"n: wanted 1 to", "got 0"}},
      {"stop id",
       [](auto& r) { r.stop_token_ids = {5000}; },
       kInvalidArgument,
       {"stop_token_ids[0] is 5000"}},
      // gRPC refuses the message before any code of ours sees it.
      {"text that is no UTF-8", [](auto& r) { r.token_ids.reset(), r.text = "ab\xff"; }, kInvalidArgument, {"UTF-8"}},
      {"chat that is no UTF-8",
       [](auto& r) { r.token_ids.reset(), r.chat = {{"user", "ab\xff"}}; },
       kInvalidArgument,
       {"UTF-8"}},
      {"a stop string that is no UTF-8", [](auto& r) { r.stop = {"ab\xff"}; }, kInvalidArgument, {"UTF-8"}},
  };
  for (const RequestCase& wrong : cases) ExpectRefused(client, IdsRequest({5, 6}, 4, 0, 1), wrong);
  client::GenerateRequest chat = ChatRequest("Genesis 1:1");
  chat.chat[0].role = "wizard";
  const client::Status role = Ask(client, chat).status;
  EXPECT_EQ(role.code, kInvalidArgument);
  ExpectSays(role.message, {"message 0", "wizard"});
  const Status held = cluster->WaitNothingHeld(kSettled);
  EXPECT_TRUE(held.ok()) << held;
  EXPECT_EQ(Ask(client, ChatRequest("Genesis 1:1")).text,
            "In the beginning God created the heaven and the earth.");
}

TEST(Request, TextWithoutATokenizerIsRefused) {
  const auto cluster = MustStart({.model = TinyCheckpoint(), .expert_shards = 0});
  ASSERT_TRUE(cluster);
  client::Client client(cluster->router());
  const RequestCase cases[] = {{"text",
                                [](auto& r) { r.token_ids.reset(), r.text = "Hello"; },
                                kFailedPrecondition,
                                {"no tokenizer: send token_ids"}},
                               {"chat",
                                [](auto& r) {
                                  r.token_ids.reset(), r.chat = {{"user", "Hello"}};
                                },
                                kFailedPrecondition,
                                {"no tokenizer: send token_ids"}},
                               {"stop string",
                                [](auto& r) { r.stop = {"end"}; },
                                kFailedPrecondition,
                                {"no tokenizer: give stop_token_ids"}}};
  for (const RequestCase& wrong : cases) ExpectRefused(client, IdsRequest({5, 6}, 4, 0, 1), wrong);
  EXPECT_EQ(Ask(client, IdsRequest({5, 6}, 4, 0, 1)).ids.size(), 4u);
  EXPECT_TRUE(cluster->WaitNothingHeld(kSettled).ok());
}

TEST(Weights, NanLogitsAreAnErrorAndNeverAToken) {
  constexpr int kBad = 300;
  BrokenCheckpoint checkpoint;
  checkpoint.Tensors([](auto& t) { PutNans(t.at("model.embed_tokens.weight"), kBad * 64, 64); });
  ExpectFails(Generate(checkpoint.path(), {"--ids", "1,300"}), kFailed, {"wanted a number, got", "nan"});
  const auto cluster = MustStart({.model = checkpoint.path()});
  const auto embedded = MustLoad(TinyCheckpoint());
  ASSERT_TRUE(cluster && embedded);
  client::Client client(cluster->router());
  const auto good = IdsRequest({5, 6, 7}, 4, 0, 1);
  for (const std::vector<int32_t>& ids : {std::vector<int32_t>{kBad}, std::vector<int32_t>{5, kBad, 6}}) {
    for (const float temperature : {0.f, 1.f}) {
      const Output output = Ask(client, IdsRequest(ids, 4, temperature, 1));
      EXPECT_EQ(output.status.code, kInternal) << output.status.message;
      EXPECT_THAT(output.status.message, HasSubstr("nan"));
      EXPECT_THAT(output.ids, IsEmpty());
    }
    EXPECT_TRUE(cluster->WaitNothingHeld(kSettled).ok());
    EXPECT_EQ(Ask(client, good).ids, EmbeddedTokens(*embedded, good)) << "after the error";
  }
}

/// A stream that somebody reads all the time until it has been enough.
class Reader {
 public:
  Reader(const std::string& router, const client::GenerateRequest& request)
      : client_(router), stream_(client_.Generate(request)), thread_([this] { Read(); }) {}
  ~Reader() {
    if (thread_.joinable()) Leave();
  }
  size_t tokens() const { return tokens_; }
  bool WaitTokens(size_t count) {
    const TimePoint end = std::chrono::steady_clock::now() + kPatience;
    while (tokens_ < count && !over_ && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    return tokens_ >= count;
  }
  Output Leave() {
    stream_->Cancel();
    thread_.join();
    return output_;
  }

 private:
  void Read() {
    client::Event event;
    while (stream_->Next(&event)) {
      output_.ids.insert(output_.ids.end(), event.token_ids.begin(), event.token_ids.end());
      tokens_ = output_.ids.size();
    }
    output_.status = stream_->Finish();
    over_ = true;
  }

  client::Client client_;
  std::unique_ptr<client::TokenStream> stream_;
  Output output_;  // the thread's until it has ended
  std::atomic<size_t> tokens_ = 0;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

TEST(Weights, NanLogitsAtADecodeStepEndTheirStreamAndNoOtherOfTheBatch) {
  constexpr int kBad = 300, kLong = 3000;
  BrokenCheckpoint checkpoint;
  checkpoint.Tensors([](auto& t) { PutNans(t.at("model.embed_tokens.weight"), kBad * 64, 64); });
  const auto cluster = MustStart({.model = checkpoint.path()});
  const auto embedded = MustLoad(TinyCheckpoint());
  ASSERT_TRUE(cluster && embedded);
  client::GenerateRequest good[] = {IdsRequest({5, 6, 7}, kLong, 0, 1), IdsRequest({9, 8}, kLong, 0, 1)};
  Reader first(cluster->router(), good[0]), second(cluster->router(), good[1]);
  ASSERT_TRUE(first.WaitTokens(8) && second.WaitTokens(8));
  client::GenerateRequest bad = IdsRequest({5, 6, 7}, 4, 0, 1);
  bad.logit_bias = {{kBad, 100.f}};  // the first token, so that the first step after the prompt meets it
  client::Client client(cluster->router());
  for (int round = 0; round < 3; ++round) {
    const Output output = Ask(client, bad);
    EXPECT_EQ(output.status.code, kInternal) << output.status.message;
    EXPECT_THAT(output.status.message,
                AllOf(HasSubstr("logit of token 0: wanted a number, got"), HasSubstr("nan")));
    EXPECT_EQ(output.ids, std::vector<int32_t>{kBad}) << "it never came to a step of decoding";
  }
  for (Reader* reader : {&first, &second}) {
    EXPECT_TRUE(reader->WaitTokens(reader->tokens() + 8)) << "it did not run beside the bad ones";
    const Output output = reader->Leave();
    EXPECT_EQ(output.status.code, 1) << output.status.message;
    client::GenerateRequest& asked = good[reader == &second];
    asked.max_tokens = static_cast<int>(output.ids.size());
    const auto want = EmbeddedTokens(*embedded, asked);
    ASSERT_EQ(std::count(want.begin(), want.end(), kBad), 0) << "choose another prompt";
    EXPECT_EQ(output.ids, want);
  }
  EXPECT_TRUE(cluster->WaitNothingHeld(kSettled).ok());
}

}  // namespace
}  // namespace cachalot::testing
