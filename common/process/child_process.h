#pragma once
// Children of `cachalot up` and of the tests. No child outlives its parent, whatever kills that: a dying
// parent thread takes them along (PDEATHSIG), and the destructor kills what still runs.
//
// Spawning is safe with threads about, gRPC's too: between fork and exec the child calls only
// async-signal-safe functions.

#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"

namespace cachalot {

struct ChildOptions {
  std::vector<std::string> argv;                   ///< argv[0] is a path, or a name looked up in PATH
  std::map<std::string, std::string> environment;  ///< added to ours
  std::string stderr_file;                         ///< "" inherits ours; else appended to this file
  std::vector<int> cpus;                           ///< the CPUs that it may use; empty: as we
};

struct ChildExit {
  int code = 0;    ///< exit code when it exited
  int signal = 0;  ///< the signal that ended it, or 0
  std::string ToString() const;
};

/// Use from one thread, which should live as long as the children: PDEATHSIG follows the thread that spawned.
/// A child is in a process group of its own, so that Ctrl-C reaches only us and we end the children in our
/// order.
class ChildProcess {
 public:
  /// NOT_FOUND or FAILED_PRECONDITION with the system's reason when it cannot be executed.
  static StatusOr<std::unique_ptr<ChildProcess>> Spawn(ChildOptions options);
  /// SIGKILL if it runs, and waits for it.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& name() const { return name_; }

  /// The next line of its stdout, without the newline (a child that prints much must be read). OUT_OF_RANGE
  /// when it has closed stdout, DEADLINE_EXCEEDED.
  StatusOr<std::string> ReadLine(TimePoint deadline);
  /// Reads lines until "ready ROLE ADDRESS" and returns ADDRESS. ABORTED with its exit when it ends before.
  StatusOr<std::string> WaitReady(TimePoint deadline);

  /// Does nothing when it has ended.
  void Signal(int signal_number);
  void Kill();
  bool Running();
  /// DEADLINE_EXCEEDED names the process. Its stdout may still be read afterwards.
  StatusOr<ChildExit> Wait(TimePoint deadline);
  /// SIGTERM, then SIGKILL after `grace`.
  ChildExit Stop(Duration grace);

 private:
  ChildProcess(pid_t pid, int stdout_fd, std::string name);
  void Reap(int flags);

  pid_t pid_;
  int stdout_fd_;
  std::string name_, unread_;
  std::optional<ChildExit> exit_;
};

}  // namespace cachalot
