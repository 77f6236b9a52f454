// What is printed either arrives or is an error: on a full disk, and when the reader of a pipe has gone.

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <csignal>

#include "tests/integration/cluster_fixture.h"
#include "tests/support/broken_checkpoint.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

Words Chat() { return {"cachalot", "chat", "--model", DemoDirectory(), "--max-tokens", "2"}; }

TEST(Stdout, AFullDiskIsAnError) {
  const std::string tiny = TinyCheckpoint();
  const Programs folder;
  WriteText(folder / "turns", "Genesis 1:1\n");
  const auto cluster = MustStart({.model = tiny, .expert_shards = 0});
  ASSERT_TRUE(cluster);
  const Words lines[] = {
      {"cachalot", "--version"},
      {"cachalot", "--help"},
      {"cachalot", "generate", "--help"},
      {"cachalot-expert", "--help"},
      {"cachalot", "inspect", tiny},
      {"cachalot", "inspect", tiny, "--json"},
      Generate(tiny),
      Generate(tiny, {"--ids", "1,2", "--json"}),
      Generate(DemoDirectory(), {"--chat", "Genesis 1:1", "--max-tokens", "5"}),
      Chat(),
      // Their one line is `ready`: nobody would ever know that they serve.
      {"cachalot", "serve", "--model", tiny, "--listen", "127.0.0.1:0"},
      {"cachalot", "up", "--model", tiny},
      Worker("cachalot-expert", tiny, {"--shard", "0/1"}),
      Worker("cachalot-decode", tiny, {"--experts", "local"}),
      Worker("cachalot-prefill", tiny, {"--experts", "local"}),
      {"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", cluster->prefill(0).address, "--decode",
       cluster->decode(0).address},
  };
  for (const Words& argv : lines) {
    SCOPED_TRACE(argv[0] + " " + argv[1]);
    ExpectFails(InShell("exec > /dev/full < " + (folder / "turns"), argv), kFailed,
                {"stdout: write: No space left on device"});
  }
}

TEST(Stdout, AGenerationEndsWithTheFirstTextThatCannotBeWritten) {
  const auto cluster = MustStart({.model = DemoDirectory()});
  ASSERT_TRUE(cluster);
  const Words at_router = {"cachalot", "generate", "--router", cluster->router(), "--chat", "Genesis 1:1"};
  ExpectFails(InShell("exec > /dev/full", at_router), kFailed, {"stdout: write: No space left on device"});
  const Status held = cluster->WaitNothingHeld(kPatience);
  EXPECT_TRUE(held.ok()) << held;
}

/// A shell's words for a pipe as stdout that nobody reads.
std::string ToNobody(const std::string& fifo) {
  EXPECT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  return "exec 3<> " + fifo + " > " + fifo + " 3>&-";
}

TEST(Stdout, AReaderThatHasGoneEndsACommandInSilence) {
  const Programs folder;
  const std::string to_nobody = ToNobody(folder / "fifo");
  WriteText(folder / "turns", "Genesis 1:1\n");
  const std::string tiny = TinyCheckpoint();
  for (const Words& argv : {Words{"cachalot", "inspect", tiny}, Generate(tiny), Words{"cachalot", "--help"}}) {
    SCOPED_TRACE(argv[0] + " " + argv[1]);
    Programs programs;
    const Ended ended = programs.Run(InShell(to_nobody, argv));
    EXPECT_EQ(ended.exit.signal, SIGPIPE) << ended.exit.ToString();
    EXPECT_EQ(ended.err, "");
  }
}

TEST(Stdout, AReaderThatHasGoneIsAnErrorWhereSigpipeIsIgnored) {
  const Programs folder;
  const std::string to_nobody = ToNobody(folder / "fifo");
  const std::string tiny = TinyCheckpoint();
  ExpectFails(InShell("trap '' PIPE; " + to_nobody, Generate(tiny)), kFailed, {"stdout: write: Broken pipe"});
  ExpectFails(InShell(to_nobody, Worker("cachalot-expert", tiny, {"--shard", "0/1"})), kFailed,
              {"stdout: write: Broken pipe"});
}

}  // namespace
}  // namespace cachalot::testing
