#pragma once
// The server of the tests: a control loop on a thread of its own, and a step loop that another thread polls.

#include <atomic>
#include <string>
#include <thread>

#include "common/rpc/server.h"
#include "echo.grpc.pb.h"

namespace cachalot::rpc {

class EchoServer {
 public:
  explicit EchoServer(ServerOptions options = {});
  ~EchoServer();

  Status Start();
  void Shutdown(Duration grace) { server_.Shutdown(grace); }
  std::string address() const { return "127.0.0.1:" + std::to_string(server_.port()); }
  Server* server() { return &server_; }
  Loop* control() { return control_; }

  std::atomic<int> open{0};       ///< streaming handlers that run
  std::atomic<int> cancelled{0};  ///< handlers that saw their call cancelled

 private:
  using Service = test::Echo::WithRawMethod_Frames<test::Echo::WithAsyncMethod_Say<
      test::Echo::WithAsyncMethod_Count<test::Echo::WithAsyncMethod_Chat<test::Echo::Service>>>>;

  Task<Status> Say(ServerCall& call, const test::EchoRequest& request, test::EchoReply* reply);
  Task<Status> Count(ServerCall& call, const test::EchoRequest& request,
                     ServerWriter<test::EchoReply>& writer);
  Task<Status> Chat(ServerCall& call, ServerStream<test::EchoRequest, test::EchoReply>& stream);
  Task<Status> Frames(ServerCall& call, RawServerStream& stream);

  Service service_;
  Server server_;
  Loop* control_;
  Loop* step_;
  std::thread step_thread_;
};

/// Waits for `condition` on another thread's progress; false after `at_most`.
template <typename Condition>
bool Eventually(Condition condition, Duration at_most = std::chrono::seconds(20)) {
  const TimePoint end = std::chrono::steady_clock::now() + at_most;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace cachalot::rpc
