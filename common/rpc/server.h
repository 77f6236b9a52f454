#pragma once
// A gRPC server whose calls are coroutines on named loops. Methods are registered from the generated
// AsyncService:
//
//   Server server({.listen = "127.0.0.1:0"});
//   Loop* control = server.AddLoop({.name = "control"});
//   proto::Decode::AsyncService service;
//   server.Unary(control, &service, &proto::Decode::AsyncService::RequestDescribe,
//                [&](ServerCall& call, const DescribeRequest& request, DescribeResponse* response) {
//                  return decode.Describe(call, request, response);   // a member coroutine: Task<Status>
//                });
//   ASSIGN_OR_RETURN(int port, server.Start());
//   control->Start();
//
// Each method names its own loop: `WithRawMethod_Dispatch<WithAsyncMethod_Describe<Service>>` serves Dispatch
// as raw ByteBuffers on the step loop and Describe on the control loop. Every method of an AsyncService must
// be registered: gRPC never answers calls of one that is not.
//
// The handlers are plain functions that return a Task; they and the services must outlive the server.

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "common/base/status.h"
#include "common/rpc/server_acceptor.h"
#include "common/rpc/server_call.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"

namespace cachalot::rpc {

struct ServerOptions {
  std::string listen = "127.0.0.1:0";       ///< host:port or unix:path; port 0 takes a free one
  int max_message_bytes = 4 * 1024 * 1024;  ///< larger messages fail their call with RESOURCE_EXHAUSTED
};

class Server {
 public:
  explicit Server(ServerOptions options);
  /// Shuts down without grace if that has not been done. Loops that are polled must have stopped, or stop
  /// here.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Before Start. The server owns the loop; the caller drives it (Loop::Start or PollOnce). At least one
  /// loop must listen; a loop whose thread is often busy with other work must not, or new connections wait
  /// for it.
  Loop* AddLoop(LoopOptions options, bool listens = true);

  /// Task<Status> handler(ServerCall&, const Req&, Resp*).
  template <typename Service, typename Base, typename Req, typename Resp>
  void Unary(Loop* loop, Service* service, internal::RequestUnary<Base, Req, Resp> request,
             std::type_identity_t<UnaryHandler<Req, Resp>> handler) {
    AddMethod(loop, service, [=, this, handler = internal::Share(std::move(handler))] {
      return internal::AcceptUnary<Base, Req, Resp>(loop, &live_, service, request, handler);
    });
  }

  /// Task<Status> handler(ServerCall&, const Req&, ServerWriter<Resp>&).
  template <typename Service, typename Base, typename Req, typename Resp>
  void ServerStreaming(Loop* loop, Service* service,
                       internal::RequestServerStreaming<Base, Req, Resp> request,
                       std::type_identity_t<ServerStreamingHandler<Req, Resp>> handler) {
    AddMethod(loop, service, [=, this, handler = internal::Share(std::move(handler))] {
      return internal::AcceptServerStreaming<Base, Req, Resp>(loop, &live_, service, request, handler);
    });
  }

  /// Task<Status> handler(ServerCall&, ServerStream<Req, Resp>&). For WithRawMethod_X: RawServerStream&.
  template <typename Service, typename Base, typename Req, typename Resp>
  void Bidi(Loop* loop, Service* service, internal::RequestBidi<Base, Req, Resp> request,
            std::type_identity_t<BidiHandler<Req, Resp>> handler) {
    AddMethod(loop, service, [=, this, handler = internal::Share(std::move(handler))] {
      return internal::AcceptBidi<Base, Req, Resp>(loop, &live_, service, request, handler);
    });
  }

  /// Listens and accepts. Returns the bound port (0 for unix:). UNAVAILABLE with the system's reason when the
  /// address cannot be bound, INVALID_ARGUMENT when it is no address.
  StatusOr<int> Start();

  /// Blocks; not on a loop's thread; idempotent. Accepts nothing more, lets running calls end within `grace`,
  /// cancels the rest, then stops the loops and joins those that have a thread of their own. Idle connections
  /// are closed as soon as no call runs. Whoever drives a loop with PollOnce must go on until kStopped.
  void Shutdown(Duration grace);

  int port() const { return port_; }

 private:
  using AcceptorFactory = std::function<Task<void>()>;
  struct Method {
    Loop* loop;
    AcceptorFactory acceptor;
  };
  void AddMethod(Loop* loop, grpc::Service* service, AcceptorFactory acceptor);
  Status ProbeAddress() const;
  void EndCalls(TimePoint grace_end);
  void StopLoops();

  const ServerOptions options_;
  LiveCalls live_;
  grpc::ServerBuilder builder_;
  std::vector<std::unique_ptr<Loop>> loops_;
  std::vector<grpc::Service*> services_;
  std::vector<Method> methods_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  bool shut_down_ = false;
};

}  // namespace cachalot::rpc
