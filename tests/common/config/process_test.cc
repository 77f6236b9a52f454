#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "common/process/child_process.h"
#include "common/process/role_main.h"

namespace cachalot {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

TimePoint Soon() { return std::chrono::steady_clock::now() + seconds(20); }

std::unique_ptr<ChildProcess> Probe(const std::string& mode) {
  auto child = ChildProcess::Spawn({.argv = {PROCESS_PROBE, mode}, .environment = {{"PROBE", "here"}}});
  EXPECT_TRUE(child.ok()) << child.status();
  return std::move(*child);
}

TEST(Process, SaysReadyAndEndsAtASignal) {
  for (const int number : {SIGTERM, SIGINT}) {
    auto child = Probe("serve");
    EXPECT_EQ(child->WaitReady(Soon()).value(), "127.0.0.1:1234");
    EXPECT_TRUE(child->Running());
    child->Signal(number);
    EXPECT_EQ(child->ReadLine(Soon()).value(), "callback");
    EXPECT_EQ(child->Wait(Soon())->code, kExitOk);
    EXPECT_FALSE(child->Running());
    child->Kill();  // does nothing
  }
}

TEST(Process, StopsByItsOwnRequest) {
  auto child = Probe("request-stop");
  ASSERT_TRUE(child->WaitReady(Soon()).ok());
  EXPECT_EQ(child->Wait(Soon())->code, kExitOk);
}

TEST(Process, ASecondSignalLeavesAtOnce) {
  auto child = Probe("hang");
  ASSERT_TRUE(child->WaitReady(Soon()).ok());
  child->Signal(SIGTERM);
  std::string line;
  while (line != "draining") line = child->ReadLine(Soon()).value();
  EXPECT_EQ(child->Wait(std::chrono::steady_clock::now()).status().code(), StatusCode::kDeadlineExceeded);
  child->Signal(SIGTERM);
  EXPECT_EQ(child->Wait(Soon())->code, kExitFailed);
}

TEST(Process, StopKillsWhatDoesNotEnd) {
  auto child = Probe("hang");
  ASSERT_TRUE(child->WaitReady(Soon()).ok());
  const ChildExit exit = child->Stop(std::chrono::milliseconds(1));
  EXPECT_TRUE(exit.signal == SIGKILL || exit.signal == 0) << exit.ToString();
}

TEST(Process, ExitCodesTellUsageFromFailure) {
  EXPECT_EQ(Probe("fail")->Wait(Soon())->code, kExitFailed);
  EXPECT_EQ(Probe("bad-log")->Wait(Soon())->code, kExitUsage);
  const Status status = Probe("fail")->WaitReady(Soon()).status();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("process_probe exited with code 1"));
}

TEST(Process, ReadsLinesToTheEnd) {
  auto child = Probe("lines");
  for (const char* line : {"one", "two", "three"}) EXPECT_EQ(child->ReadLine(Soon()).value(), line);
  EXPECT_EQ(child->ReadLine(Soon()).status().code(), StatusCode::kOutOfRange);
}

TEST(Process, AReadHasADeadline) {
  auto child = Probe("serve");
  ASSERT_TRUE(child->WaitReady(Soon()).ok());
  EXPECT_EQ(child->ReadLine(std::chrono::steady_clock::now()).status().code(), StatusCode::kDeadlineExceeded);
}

TEST(Process, SetsTheEnvironment) { EXPECT_EQ(Probe("environment")->ReadLine(Soon()).value(), "poll here"); }

TEST(Process, ReportsWhatCannotRun) {
  EXPECT_EQ(ChildProcess::Spawn({.argv = {"/nonexistent/program"}}).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ChildProcess::Spawn({.argv = {"/dev/null"}}).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(ChildProcess::Spawn({.argv = {PROCESS_PROBE, "lines"}, .stderr_file = "/nonexistent/x"})
                .status()
                .code(),
            StatusCode::kFailedPrecondition);
}

TEST(Process, ChildrenDieWithTheirParent) {
  auto parent = Probe("parent");
  const pid_t grandchild = std::stoi(parent->WaitReady(Soon()).value());
  EXPECT_EQ(kill(grandchild, 0), 0);
  parent->Kill();
  ASSERT_TRUE(parent->Wait(Soon()).ok());
  // The grandchild held the parent's stdout; nobody is left to wait for it but init, so its end is seen
  // there.
  const TimePoint end = Soon();
  auto gone = [&] {
    if (kill(grandchild, 0) != 0) return true;
    std::string state;
    if (FILE* file = fopen(("/proc/" + std::to_string(grandchild) + "/stat").c_str(), "r")) {
      char text[256] = {};
      if (fgets(text, sizeof(text), file) != nullptr) state = text;
      fclose(file);
    }
    return state.empty() || state.find(") Z") != std::string::npos;
  };
  while (!gone() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_TRUE(gone());
}

}  // namespace
}  // namespace cachalot
