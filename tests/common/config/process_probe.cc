// A role without a role, for process_test: what it does is its first argument.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/process/child_process.h"
#include "common/process/role_main.h"

namespace cachalot {
namespace {

Status Run(RoleProcess& process, const std::string& mode, const char* self) {
  RETURN_IF_ERROR(process.Init(mode == "bad-log" ? "loud" : "error"));
  if (mode == "fail") return Unavailable("no luck");
  if (mode == "lines") {
    std::printf("one\ntwo\nthree");
    return OkStatus();
  }
  if (mode == "parent") {  // starts a child that serves, and says its pid
    ASSIGN_OR_RETURN(auto child, ChildProcess::Spawn({.argv = {self, "serve"}}));
    ASSIGN_OR_RETURN(const std::string address,
                     child->WaitReady(std::chrono::steady_clock::now() + std::chrono::seconds(20)));
    process.Ready(std::to_string(child->pid()));
    process.WaitForStop();
    return OkStatus();
  }
  process.Ready("127.0.0.1:1234");
  if (mode == "request-stop") process.RequestStop("asked");
  process.WaitForStop();
  if (mode == "hang") {
    std::printf("draining\n");
    std::fflush(stdout);
    for (;;) pause();
  }
  return OkStatus();
}

}  // namespace
}  // namespace cachalot

int main(int, char** argv) {
  cachalot::RoleProcess process({.role = "probe", .poll_strategy = cachalot::PollStrategy::kPoll});
  const std::stop_callback on_stop(process.stop_token(), [] { std::printf("callback\n"); });
  if (std::string(argv[1]) == "environment") {
    std::printf("%s %s\n", std::getenv("GRPC_POLL_STRATEGY"), std::getenv("PROBE"));
    return 0;
  }
  return process.Exit(cachalot::Run(process, argv[1], argv[0]));
}
