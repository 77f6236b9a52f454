#include "common/process/role_main.h"

#include <signal.h>
#include <sys/prctl.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "boost/asio/executor_work_guard.hpp"
#include "boost/asio/io_context.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/signal_set.hpp"
#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/standard_output.h"

namespace cachalot {

struct RoleProcess::Impl {
  explicit Impl(std::string role_name) : role(std::move(role_name)) {}

  // On the signal thread.
  void WaitForSignal() {
    signals.async_wait([this](const boost::system::error_code& error, int number) {
      if (error) return;
      if (signals_seen++ > 0) {
        LogError("second signal: leaving at once");
        std::_Exit(kExitFailed);
      }
      Stop(std::string("signal ") + strsignal(number));
      WaitForSignal();
    });
  }

  // On the signal thread.
  void Stop(const std::string& reason) {
    if (stop.stop_requested()) return;
    LogInfo("stopping: " + reason);
    stop.request_stop();
    std::lock_guard lock(mutex);
    stopped = true;
    changed.notify_all();
  }

  const std::string role;
  boost::asio::io_context context{1};
  boost::asio::signal_set signals{context};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{context.get_executor()};
  std::thread thread;
  std::stop_source stop;
  int signals_seen = 0;
  bool ready = false;
  Status printed;  // the ready line

  std::mutex mutex;
  std::condition_variable changed;
  bool stopped = false;  // and whoever waits for the token has been told
};

RoleProcess::RoleProcess(RoleOptions options) : impl_(std::make_unique<Impl>(std::move(options.role))) {
  if (options.poll_strategy == PollStrategy::kPoll) setenv("GRPC_POLL_STRATEGY", "poll", /*overwrite=*/0);
}

RoleProcess::~RoleProcess() {
  impl_->context.stop();
  if (impl_->thread.joinable()) impl_->thread.join();
}

Status RoleProcess::Init(const std::string& log_level) {
  CHECK(!impl_->thread.joinable());
  if (!InitLog(impl_->role, log_level)) {
    return InvalidArgument("--log-level: expected debug, info, warning or error, got '" + log_level + "'");
  }
  signal(SIGPIPE, SIG_IGN);
  boost::system::error_code error;
  impl_->signals.add(SIGINT, error);
  if (!error) impl_->signals.add(SIGTERM, error);
  if (error) return Internal("cannot take signals: " + error.message());
  impl_->WaitForSignal();
  // All later threads inherit the mask: no signal interrupts them, nor waits for the end of what they do.
  sigset_t taken;
  sigemptyset(&taken);
  sigaddset(&taken, SIGINT);
  sigaddset(&taken, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &taken, nullptr);
  impl_->thread = std::thread([this, taken] {
    pthread_setname_np(pthread_self(), "signals");
    pthread_sigmask(SIG_UNBLOCK, &taken, nullptr);
    impl_->context.run();
  });
  return OkStatus();
}

Status RoleProcess::DieWithParent() {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) == 0) return OkStatus();
  return Internal(std::string("PR_SET_PDEATHSIG: ") + std::strerror(errno));
}

void RoleProcess::Ready(const std::string& address) {
  CHECK(!std::exchange(impl_->ready, true));
  // Whoever waits for the line would wait in vain.
  impl_->printed = WriteStdout("ready " + impl_->role + " " + address + "\n");
  if (!impl_->printed.ok()) return RequestStop(StatusMessage(impl_->printed));
  LogInfo("ready on " + address);
}

std::stop_token RoleProcess::stop_token() const { return impl_->stop.get_token(); }

void RoleProcess::RequestStop(const std::string& reason) {
  boost::asio::post(impl_->context, [this, reason] { impl_->Stop(reason); });
}

bool RoleProcess::WaitForStop(TimePoint deadline) {
  std::unique_lock lock(impl_->mutex);
  const auto stopped = [this] { return impl_->stopped; };
  if (deadline != TimePoint::max()) return impl_->changed.wait_until(lock, deadline, stopped);
  impl_->changed.wait(lock, stopped);
  return true;
}

bool RoleProcess::stopping() const { return impl_->stop.stop_requested(); }

int RoleProcess::Exit(const Status& served) const {
  Status status = served;
  if (status.ok()) status = impl_->printed;
  if (status.ok()) status = FlushStdout();
  if (status.ok()) return kExitOk;
  // A wrong flag is found before Init: without a log of ours its message would go to stdout.
  if (!impl_->thread.joinable()) (void)InitLog(impl_->role, "info");
  LogError(StatusMessage(status));
  return status.code() == StatusCode::kInvalidArgument && !impl_->ready ? kExitUsage : kExitFailed;
}

}  // namespace cachalot
