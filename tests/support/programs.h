#pragma once
// Binaries that are run to their end, and what they must say.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/process/child_process.h"
#include "tests/common/loader/tensor_files.h"
#include "tests/support/patience.h"

namespace cachalot::testing {

constexpr int kFailed = 1, kUsage = 2;  // exit codes

struct Ended {
  ChildExit exit;
  std::string out, err;
};

/// Command lines of live processes in which `word` occurs.
inline std::vector<std::string> RunningWith(const std::string& word) {
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    if (entry.path().filename().string().find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream in(entry.path() / "cmdline", std::ios::binary);
    const std::string line{std::istreambuf_iterator<char>(in), {}};
    if (line.find(word) != std::string::npos) found.push_back(line);
  }
  return found;
}

/// `argv` by a shell that does `before` first, as in InShell("exec > FILE", ...).
inline std::vector<std::string> InShell(const std::string& before, std::vector<std::string> argv) {
  argv[0] = CACHALOT_BINARY_DIR "/" + argv[0];
  argv.insert(argv.begin(), {"/bin/sh", "-c", before + "; exec \"$0\" \"$@\""});
  return argv;
}

/// Binaries by name, with their stderr in a file of this object's folder, whose name occurs in no other
/// command line.
class Programs {
 public:
  std::unique_ptr<ChildProcess> Start(std::vector<std::string> argv) {
    if (!argv[0].starts_with('/')) argv[0] = CACHALOT_BINARY_DIR "/" + argv[0];
    std::filesystem::remove(log());
    auto child = ChildProcess::Spawn({.argv = std::move(argv), .stderr_file = log()});
    EXPECT_TRUE(child.ok()) << child.status();
    return child.ok() ? std::move(*child) : nullptr;
  }

  Ended Run(std::vector<std::string> argv) {
    const auto child = Start(std::move(argv));
    return child ? End(*child) : Ended();
  }

  /// Until it ends by itself.
  Ended End(ChildProcess& child) {
    const TimePoint deadline = std::chrono::steady_clock::now() + kPatience;
    Ended ended;
    for (;;) {
      const auto line = child.ReadLine(deadline);
      if (!line.ok()) break;
      ended.out += *line + "\n";
    }
    const auto exit = child.Wait(deadline);
    EXPECT_TRUE(exit.ok()) << exit.status();
    if (exit.ok()) ended.exit = *exit;
    ended.err = ReadText(log());
    return ended;
  }

  /// Until `word` stands in its stderr; false when it has ended or the time is up before.
  bool WaitLogged(ChildProcess& child, const std::string& word) {
    const TimePoint deadline = std::chrono::steady_clock::now() + kPatience;
    for (;;) {
      const bool running = child.Running();
      if (ReadText(log()).find(word) != std::string::npos) return true;
      if (!running || std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));  // between looks at another process
    }
  }

  std::string log() const { return directory_ / "stderr"; }
  std::string operator/(const std::string& name) const { return directory_ / name; }

 private:
  TempDir directory_;
};

using Words = std::vector<std::string>;

inline void ExpectSays(const std::string& text, const Words& words) {
  for (const std::string& word : words) EXPECT_THAT(text, ::testing::HasSubstr(word));
}

inline void ExpectFails(const Words& argv, int code, const Words& says) {
  Programs programs;
  const Ended ended = programs.Run(argv);
  EXPECT_EQ(ended.exit.signal, 0) << ended.err;
  EXPECT_EQ(ended.exit.code, code) << ended.err;
  EXPECT_EQ(ended.out, "");
  ExpectSays(ended.err, says);
}

inline Words Generate(const std::string& model, const Words& more = {"--ids", "1,2", "--max-tokens", "2"}) {
  Words argv = {"cachalot", "generate", "--model", model};
  argv.insert(argv.end(), more.begin(), more.end());
  return argv;
}

inline Words Worker(const std::string& binary, const std::string& model, const Words& more) {
  Words argv = {binary, "--model", model, "--listen", "127.0.0.1:0", "--die-with-parent"};
  argv.insert(argv.end(), more.begin(), more.end());
  return argv;
}

}  // namespace cachalot::testing
