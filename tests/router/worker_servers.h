#pragma once
// Scripted decode and prefill workers over real gRPC, and the loop of the router that talks to them.

#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "cachalot/v1/decode.grpc.pb.h"
#include "cachalot/v1/prefill.grpc.pb.h"
#include "common/rpc/async_queue.h"
#include "common/rpc/block_on.h"
#include "common/rpc/server.h"
#include "common/rpc/write_queue.h"
#include "router/worker_api.h"
#include "tests/support/patience.h"

namespace cachalot::testing {

/// Waits for another thread's progress; false after kPatience.
bool Eventually(const std::function<bool()>& condition);

v1::Compat TestCompat();

/// What both kinds of worker share: a server on one loop, and Describe. The script is set before or between
/// calls.
class WorkerServer {
 public:
  /// `listen`: an IPv4 host:port, of which 0 is any free one.
  WorkerServer(v1::Role role, const std::string& listen);
  virtual ~WorkerServer();
  std::string address() const { return host_ + ":" + std::to_string(server_.port()); }
  void Stop() { server_.Shutdown(Duration::zero()); }

  /// Any thread: changes the script.
  void Script(const std::function<void()>& change);
  /// Any thread: reads what has happened.
  template <typename T>
  T Look(const T& member) {
    std::lock_guard lock(mutex_);
    return member;
  }

  v1::Description description;
  bool describe_hangs = false;
  std::vector<std::string> describers;  // peers that have called Describe

 protected:
  void Start();
  std::mutex mutex_;
  const std::string host_;
  rpc::Server server_;
  rpc::Loop* loop_;

 private:
  rpc::Task<Status> Describe(rpc::ServerCall& call, v1::Description* response);
  v1::Cluster::AsyncService cluster_;
};

class DecodeServer final : public WorkerServer {
 public:
  using Stream = rpc::ServerStream<v1::SessionRequest, v1::SessionResponse>;
  explicit DecodeServer(const std::string& listen = "127.0.0.1:0");
  ~DecodeServer() override { Stop(); }

  /// To the router of the latest Session.
  void Send(v1::SessionResponse response);
  void SendGranted(uint64_t handle, uint64_t lease);
  void SendFailed(uint64_t handle, int code, const std::string& message);
  void SendTokens(const std::vector<uint64_t>& handles, int64_t index, int32_t token);
  /// Ends the latest Session with `status`.
  void End(Status status);
  /// The messages of one kind, of all Sessions.
  std::vector<v1::SessionRequest> Received(v1::SessionRequest::MessageCase kind);
  /// The first `count` of them, or what has come within kPatience.
  std::vector<v1::SessionRequest> Await(v1::SessionRequest::MessageCase kind, size_t count);

  bool answers_hello = true;
  std::optional<int64_t> reserve_ahead;  // in its Hello
  bool beats = true;  // every 10 ms
  int deaf_sessions = 0;  // of so many nothing is read behind the Hello
  uint32_t asks_for_heartbeats_ms = 0;
  Status refuses_hello;
  std::vector<v1::SessionRequest> received;
  int sessions = 0, open_sessions = 0;

 private:
  struct Session;
  rpc::Task<Status> Serve(rpc::ServerCall& call, Stream& stream);
  rpc::Task<void> Read(std::shared_ptr<Session> session);
  rpc::Task<void> Beat(std::shared_ptr<Session> session);
  v1::Decode::AsyncService decode_;
  std::shared_ptr<Session> session_;  // loop thread
};

class PrefillServer final : public WorkerServer {
 public:
  explicit PrefillServer(const std::string& listen = "127.0.0.1:0");
  ~PrefillServer() override { Stop(); }

  /// To the latest call.
  void Send(v1::PrefillEvent event);
  void SendProgress();
  void SendFirstToken(int32_t token, v1::StepFinish finish = v1::STEP_FINISH_NONE);
  void SendCommitted();
  void End(Status status);

  std::vector<v1::PrefillRequest> requests;
  int open_calls = 0, cancelled = 0;

 private:
  struct Order {
    std::optional<v1::PrefillEvent> event;  // to send; none: end the call
    Status end;
  };
  void Post(Order order);
  rpc::Task<Status> Serve(rpc::ServerCall& call, const v1::PrefillRequest& request,
                          rpc::ServerWriter<v1::PrefillEvent>& writer);
  v1::Prefill::AsyncService prefill_;
  std::shared_ptr<rpc::AsyncQueue<Order>> orders_;  // of the latest call; loop thread
};

/// The router's loop on its thread. Clients are made by the test, after this and before the loop's end.
class ClientTest : public ::testing::Test {
 protected:
  ClientTest() { loop_.Start(); }
  ~ClientTest() override { StopLoop(); }
  void StopLoop();

  /// Runs `work` on the loop and gives its result.
  template <typename Work>
  auto OnLoop(Work work) {
    std::packaged_task<decltype(work())()> task(std::move(work));
    auto result = task.get_future();
    EXPECT_TRUE(loop_.Post([&task] { task(); }));
    return result.get();
  }
  template <typename Worker>
  Status Health(Worker& worker) {
    return OnLoop([&worker] { return worker.health(); });
  }
  template <typename Worker>
  bool EventuallyHealthy(Worker& worker) {
    return Eventually([&] { return Health(worker).ok(); });
  }
  template <typename Worker>
  bool EventuallySick(Worker& worker) {
    return Eventually([&] { return !Health(worker).ok(); });
  }
  /// The next event of a request; a kCancelled of ours when none comes.
  FlowEvent Next(const std::shared_ptr<FlowQueue>& queue);
  /// Nothing is there now.
  bool Empty(const std::shared_ptr<FlowQueue>& queue) {
    return OnLoop([&] { return queue->size() == 0; });
  }
  std::shared_ptr<FlowQueue> NewQueue() { return std::make_shared<FlowQueue>(&loop_); }

  rpc::Loop loop_{{.name = "router"}};
};

SequenceState TestState();

}  // namespace cachalot::testing
