#pragma once
// The start and the end that every server binary shares: log, signals, the ready line, exit codes.
//
//   int main(int argc, char** argv) {
//     RoleProcess process({.role = "decode", .poll_strategy = PollStrategy::kPoll});
//     return process.Exit(Run(process, argc, argv));
//   }
//   Status Run(RoleProcess& process, int argc, char** argv) {
//     ... parse the configuration ...
//     RETURN_IF_ERROR(process.Init(config.log_level));
//     ... build and start the server ...
//     process.Ready("127.0.0.1:" + std::to_string(port));
//     process.WaitForStop();  // SIGINT, SIGTERM or RequestStop
//     ... drain, shut down ...
//     return OkStatus();
//   }

#include <memory>
#include <stop_token>
#include <string>

#include "common/base/status.h"
#include "common/base/time.h"

namespace cachalot {

enum class PollStrategy {
  kDefault,  ///< gRPC's own choice (epoll1): the router
  kPoll,  ///< processes with a step thread: under epoll1 a thread blocked in its queue starves one that polls
};

struct RoleOptions {
  std::string role;  ///< as in the ready line: router, prefill, decode, expert
  PollStrategy poll_strategy = PollStrategy::kDefault;
};

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;  ///< it ran and failed, or a second signal cut its drain
constexpr int kExitUsage = 2;   ///< INVALID_ARGUMENT before it ran: flags or configuration

class RoleProcess {
 public:
  /// First thing in main: sets GRPC_POLL_STRATEGY (an outer setting wins) before gRPC can start. One per
  /// process.
  explicit RoleProcess(RoleOptions options);
  ~RoleProcess();
  RoleProcess(const RoleProcess&) = delete;
  RoleProcess& operator=(const RoleProcess&) = delete;

  /// Opens the log and starts the signal thread; ignores SIGPIPE. INVALID_ARGUMENT for an unknown log level.
  Status Init(const std::string& log_level);
  /// The kernel kills this process (SIGKILL) when the parent thread that started it ends. For binaries that a
  /// script starts: ChildProcess does this by itself.
  Status DieWithParent();

  /// Prints the one line "ready ROLE HOST:PORT" on stdout and flushes it. Once. When that fails the process is
  /// asked to stop, and Exit says why.
  void Ready(const std::string& address);

  /// For std::stop_callback: runs on the signal thread with the first SIGINT or SIGTERM (or RequestStop), before
  /// WaitForStop returns; at once when that has been. A second signal ends the process at once with kExitFailed.
  std::stop_token stop_token() const;
  /// As a signal would. Any thread.
  void RequestStop(const std::string& reason);
  /// Blocks until a stop is asked for. False when that has not happened by `deadline`.
  bool WaitForStop(TimePoint deadline = TimePoint::max());
  bool stopping() const;

  /// Logs `served` on stderr unless OK, even when Init was not reached, and gives main's result: kExitUsage for
  /// INVALID_ARGUMENT before Ready, kExitFailed when what was printed on stdout did not arrive.
  int Exit(const Status& served) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cachalot
