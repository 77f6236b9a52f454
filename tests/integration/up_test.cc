// `cachalot up`: flags for its roles, a stop before they are ready, and roles that end.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <sstream>

#include "tests/integration/cluster_fixture.h"
#include "tests/support/broken_checkpoint.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int kUnavailable = 14;

Words Up(const Words& more) {
  Words argv = {"cachalot", "up", "--model", TinyCheckpoint(), "--expert-shards", "1"};
  argv.insert(argv.end(), more.begin(), more.end());
  return argv;
}

/// The processes that the ready line names, in its order.
Words Pids(const std::string& ready) {
  Words pids;
  std::istringstream words(ready.substr(ready.rfind(' ') + 1));
  for (std::string pid; std::getline(words, pid, ',');) pids.push_back(pid);
  return pids;
}

Words CommandLines(const std::string& ready) {
  Words lines;
  for (const std::string& pid : Pids(ready)) {
    std::string line = ReadText("/proc/" + pid + "/cmdline");
    std::replace(line.begin(), line.end(), '\0', ' ');
    lines.push_back(line);
  }
  return lines;
}

/// Until `role` has logged that it was asked to stop.
bool WaitStopping(const Programs& programs, const std::string& role) {
  const TimePoint end = std::chrono::steady_clock::now() + kPatience;
  do {
    std::istringstream log(ReadText(programs.log()));
    for (std::string line; std::getline(log, line);)
      if (line.find(" " + role + "[") != std::string::npos && line.find("stopping: signal") != std::string::npos)
        return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // between looks at another process
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

TEST(Up, FlagsReachTheirRoleAndWinOverItsOwn) {
  Programs programs;
  WriteText(programs / "up.yaml", "router-placement-wait-ms: 70\nprefill_max_queue: 9\n");
  const auto up = programs.Start(Up({"--config", programs / "up.yaml", "--router-max-requests", "7",
                                     "--decode-threads=2", "--no-decode-debug-logits", "--expert-batch-wait-us", "3",
                                     "--prefill-metrics-listen", "127.0.0.1:0", "--threads", "1", "--debug-logits"}));
  const auto line = up->ReadLine(std::chrono::steady_clock::now() + kPatience);
  ASSERT_TRUE(line.ok()) << line.status() << ReadText(programs.log());
  const Words lines = CommandLines(*line);
  ASSERT_EQ(lines.size(), 4u) << *line;
  ExpectSays(lines[0], {"--max-requests=7 ", "--placement-wait-ms=70 "});
  ExpectSays(lines[1], {"--max-queue=9 ", "--threads=1 ", "--metrics-listen=127.0.0.1:0 ", "--debug-logits=true "});
  ExpectSays(lines[2], {"--threads=2 ", "--debug-logits=false "});
  ExpectSays(lines[3], {"--batch-wait-us=3 ", "--threads=1 "});
  for (size_t i = 1; i < lines.size(); ++i) EXPECT_THAT(lines[i], Not(HasSubstr("max-requests")));
  up->Signal(SIGTERM);
  EXPECT_EQ(programs.End(*up).exit.ToString(), ChildExit{}.ToString());
}

TEST(Up, WrongFlagsOfRolesStartNothing) {
  const struct {
    Words words, says;
  } cases[] = {
      {{"--router-max-request", "3"}, {"unknown flag --router-max-request (did you mean --router-max-requests?)"}},
      {{"--decode-widow=64"}, {"unknown flag --decode-widow (did you mean --decode-window?)"}},
      {{"--decode-window", "1"}, {"--decode-window: expected 32 to 1048576, got 1"}},
      {{"--decode-window"}, {"--decode-window needs a value (integer)"}},
      {{"--router-listen", "127.0.0.1:1"}, {"--router-listen: ", "use --grpc-port"}},
      {{"--router-prefill", "127.0.0.1:1"}, {"--router-prefill: ", "use --prefill N"}},
      {{"--prefill-mode=bf16"}, {"--prefill-mode: all roles need the same: use --mode"}},
      {{"--expert-shard", "0/1"}, {"--expert-shard: ", "use --expert-shards N"}},
      {{"--decode-model", "x"}, {"--decode-model: all roles need the same: use --model"}},
      {{"--router-config", "x"}, {"--router-config: put ROLE-FLAG: VALUE into the file of --config"}},
      {{"--decode", "2", "--decode-metrics-listen", "127.0.0.1:9000"},
       {"--decode-metrics-listen: 2 processes cannot share the port of 127.0.0.1:9000; give port 0"}},
  };
  for (const auto& wrong : cases) {
    SCOPED_TRACE(wrong.words[0]);
    ExpectFails(Up(wrong.words), kUsage, wrong.says);
  }
  ExpectFails({"cachalot", "up", "--model", TinyCheckpoint(), "--expert-shards", "0", "--expert-batch-wait-us", "1"},
              kUsage, {"--expert-batch-wait-us: there are no expert services with --expert-shards 0"});
}

TEST(Up, AStopWhileItStartsReachesItsRoles) {
  Programs programs;
  // A role that opens its checkpoint's config waits here until somebody writes.
  const std::string model = programs / "model", config = model + "/config.json";
  std::filesystem::create_directory(model);
  ASSERT_EQ(mkfifo(config.c_str(), 0600), 0);
  const auto up = programs.Start({"cachalot", "up", "--model", model, "--expert-shards", "1"});
  const int writer = open(config.c_str(), O_WRONLY | O_CLOEXEC);  // until the expert service reads
  ASSERT_GE(writer, 0);
  up->Signal(SIGTERM);
  EXPECT_TRUE(WaitStopping(programs, "expert"));
  close(writer);
  const Ended ended = programs.End(*up);
  EXPECT_EQ(ended.exit.ToString(), ChildExit{}.ToString()) << ended.err;
  EXPECT_EQ(ended.out, "");
  EXPECT_THAT(RunningWith(model), IsEmpty());
}

TEST(Up, StartsAgainWhatEnds) {
  const client::GenerateRequest request = IdsRequest({5, 6, 7}, 32, 0.f, 1);
  Programs programs;
  const auto up = programs.Start(Up({}));
  const auto line = up->ReadLine(std::chrono::steady_clock::now() + kPatience);
  ASSERT_TRUE(line.ok()) << line.status() << ReadText(programs.log());
  const Words pids = Pids(*line);
  ASSERT_EQ(pids.size(), 4u) << *line;
  const std::string address = line->substr(6, line->rfind(' ') - 6);
  client::Client client(address);
  const Output want = Ask(client, request);
  ASSERT_TRUE(want.status.ok()) << want.status.message;

  const char* binaries[] = {"cachalot-router", "cachalot-prefill", "cachalot-decode", "cachalot-expert"};
  for (int i = 3; i >= 0; --i) {
    SCOPED_TRACE(binaries[i]);
    ASSERT_EQ(kill(std::stoi(pids[i]), SIGKILL), 0);
    ASSERT_TRUE(programs.WaitLogged(*up, std::string(binaries[i]) + " starts again at ")) << ReadText(programs.log());
    const TimePoint end = std::chrono::steady_clock::now() + kPatience;
    Output output = Ask(client, request);
    while (output.status.code == kUnavailable && std::chrono::steady_clock::now() < end)  // not yet
      output = Ask(client, request);
    EXPECT_TRUE(output.status.ok()) << output.status.message;
    EXPECT_EQ(output.ids, want.ids);
  }
  up->Signal(SIGTERM);
  EXPECT_EQ(programs.End(*up).exit.ToString(), ChildExit{}.ToString());
  EXPECT_THAT(RunningWith(address), IsEmpty());
}

TEST(Up, LeavesWhatEndsWhereItIsWithoutRestart) {
  Programs programs;
  const auto up = programs.Start(Up({"--no-restart", "--router-placement-wait-ms", "3000"}));
  const auto line = up->ReadLine(std::chrono::steady_clock::now() + kPatience);
  ASSERT_TRUE(line.ok()) << line.status() << ReadText(programs.log());
  ASSERT_EQ(kill(std::stoi(Pids(*line)[2]), SIGKILL), 0);
  client::Client client(line->substr(6, line->rfind(' ') - 6));
  EXPECT_EQ(Ask(client, IdsRequest({5, 6, 7}, 32, 0.f, 1)).status.code, kUnavailable) << "there is a decode worker";
  up->Signal(SIGTERM);
  EXPECT_EQ(programs.End(*up).exit.ToString(), ChildExit{}.ToString());
}

}  // namespace
}  // namespace cachalot::testing
