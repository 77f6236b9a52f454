#include "common/process/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "common/base/check.h"

extern char** environ;

namespace cachalot {
namespace {

constexpr Duration kReapInterval = std::chrono::milliseconds(2);

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) == 0) {
      read = fds[0];
      write = fds[1];
    }
  }
  ~Pipe() {
    CloseRead();
    CloseWrite();
  }
  void CloseRead() { Close(&read); }
  void CloseWrite() { Close(&write); }
  static void Close(int* fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
};

// Everything that the child needs between fork and exec, made before: there it may not allocate.
struct Image {
  std::vector<std::string> environment;
  std::vector<char*> argv, envp;
  cpu_set_t cpus;
  bool pinned = false;
  int stdout_fd, stderr_fd, error_fd;
  pid_t parent;
};

void Fill(const ChildOptions& options, Image* image) {
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    if (!options.environment.contains(text.substr(0, text.find('=')))) image->environment.push_back(text);
  }
  for (const auto& [name, value] : options.environment) image->environment.push_back(name + "=" + value);
  for (std::string& variable : image->environment) image->envp.push_back(variable.data());
  image->envp.push_back(nullptr);
  for (const std::string& word : options.argv) image->argv.push_back(const_cast<char*>(word.c_str()));
  image->argv.push_back(nullptr);
  CPU_ZERO(&image->cpus);
  for (const int cpu : options.cpus) CPU_SET(cpu, &image->cpus);
  image->pinned = !options.cpus.empty();
  image->parent = getpid();
}

[[noreturn]] void FailChild(const Image& image) {
  const int error = errno;
  [[maybe_unused]] const ssize_t written = write(image.error_fd, &error, sizeof(error));
  _exit(127);
}

// In the child. Only async-signal-safe calls.
[[noreturn]] void Exec(const Image& image) {
  setpgid(0, 0);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) FailChild(image);
  if (getppid() != image.parent) _exit(127);  // it died before the line above
  if (image.pinned && sched_setaffinity(0, sizeof(image.cpus), &image.cpus) != 0) FailChild(image);
  if (dup2(image.stdout_fd, STDOUT_FILENO) < 0) FailChild(image);
  if (image.stderr_fd >= 0 && dup2(image.stderr_fd, STDERR_FILENO) < 0) FailChild(image);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);  // exec keeps what is ignored
  execvpe(image.argv[0], image.argv.data(), image.envp.data());
  FailChild(image);
}

std::string BaseName(const std::string& path) { return path.substr(path.rfind('/') + 1); }

int PollMilliseconds(TimePoint deadline) {
  if (deadline == TimePoint::max()) return -1;
  const auto left = deadline - std::chrono::steady_clock::now();
  const int64_t milliseconds = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return static_cast<int>(std::clamp<int64_t>(milliseconds, 0, 1'000'000));
}

}  // namespace

std::string ChildExit::ToString() const {
  return signal != 0 ? "ended by signal " + std::to_string(signal)
                     : "exited with code " + std::to_string(code);
}

StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Spawn(ChildOptions options) {
  CHECK(!options.argv.empty());
  const std::string& program = options.argv[0];
  Pipe out, error;
  Pipe log;  // only its write end is used
  if (!options.stderr_file.empty()) {
    Pipe::Close(&log.write);
    log.write = open(options.stderr_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log.write < 0) {
      return FailedPrecondition("cannot write " + options.stderr_file + ": " + std::strerror(errno));
    }
  }
  if (out.write < 0 || error.write < 0) return ResourceExhausted("no more pipes for " + program);
  Image image;
  Fill(options, &image);
  image.stdout_fd = out.write;
  image.stderr_fd = options.stderr_file.empty() ? -1 : log.write;
  image.error_fd = error.write;
  const pid_t pid = fork();
  if (pid < 0) return ResourceExhausted("cannot fork for " + program + ": " + std::strerror(errno));
  if (pid == 0) Exec(image);
  out.CloseWrite();
  error.CloseWrite();
  std::unique_ptr<ChildProcess> child(new ChildProcess(pid, std::exchange(out.read, -1), BaseName(program)));
  int reason = 0;  // closed by a successful exec
  if (read(error.read, &reason, sizeof(reason)) == sizeof(reason)) {
    const std::string message = "cannot run " + program + ": " + std::strerror(reason);
    return reason == ENOENT ? NotFound(message) : FailedPrecondition(message);
  }
  return child;
}

ChildProcess::ChildProcess(pid_t pid, int stdout_fd, std::string name)
    : pid_(pid), stdout_fd_(stdout_fd), name_(std::move(name)) {}

ChildProcess::~ChildProcess() {
  Kill();
  Reap(0);
  close(stdout_fd_);
}

StatusOr<std::string> ChildProcess::ReadLine(TimePoint deadline) {
  for (;;) {
    if (const size_t newline = unread_.find('\n'); newline != std::string::npos) {
      std::string line = unread_.substr(0, newline);
      unread_.erase(0, newline + 1);
      return line;
    }
    pollfd ready{stdout_fd_, POLLIN, 0};
    if (poll(&ready, 1, PollMilliseconds(deadline)) <= 0) {
      if (std::chrono::steady_clock::now() < deadline) continue;
      return DeadlineExceeded("no line from " + name_ + " in time");
    }
    char piece[4096];
    const ssize_t count = read(stdout_fd_, piece, sizeof(piece));
    if (count < 0 && errno == EINTR) continue;
    if (count > 0) {
      unread_.append(piece, static_cast<size_t>(count));
    } else if (!unread_.empty()) {
      return std::exchange(unread_, "");  // a last line without a newline
    } else {
      return OutOfRange(name_ + " has closed its stdout");
    }
  }
}

StatusOr<std::string> ChildProcess::WaitReady(TimePoint deadline) {
  for (;;) {
    const StatusOr<std::string> line = ReadLine(deadline);
    if (line.status().code() == StatusCode::kOutOfRange) {
      ASSIGN_OR_RETURN(const ChildExit exit, Wait(deadline));
      return Aborted(name_ + " " + exit.ToString() + " before it was ready");
    }
    if (!line.ok()) return Annotate(line.status(), "waiting for the ready line");
    if (line->starts_with("ready ")) return line->substr(line->rfind(' ') + 1);
  }
}

void ChildProcess::Signal(int signal_number) {
  if (Running()) kill(pid_, signal_number);
}

void ChildProcess::Kill() { Signal(SIGKILL); }

bool ChildProcess::Running() {
  Reap(WNOHANG);
  return !exit_.has_value();
}

void ChildProcess::Reap(int flags) {
  int status = 0;
  while (!exit_) {
    const pid_t reaped = waitpid(pid_, &status, flags);
    if (reaped < 0 && errno == EINTR) continue;
    if (reaped == 0) return;
    CHECK_MSG(reaped == pid_, "someone else waited for " + name_);
    exit_ = WIFSIGNALED(status) ? ChildExit{0, WTERMSIG(status)} : ChildExit{WEXITSTATUS(status), 0};
  }
}

StatusOr<ChildExit> ChildProcess::Wait(TimePoint deadline) {
  while (Running()) {
    if (std::chrono::steady_clock::now() >= deadline)
      return DeadlineExceeded(name_ + " has not ended in time");
    std::this_thread::sleep_for(kReapInterval);
  }
  return *exit_;
}

ChildExit ChildProcess::Stop(Duration grace) {
  Signal(SIGTERM);
  if (!Wait(std::chrono::steady_clock::now() + grace).ok()) Kill();
  Reap(0);
  return *exit_;
}

}  // namespace cachalot
