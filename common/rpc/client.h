#pragma once
// Client side: channels, call options, unary calls. All calls belong to one loop and are made on its thread.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"
#include "common/rpc/cancel_scope.h"
#include "common/rpc/cq_tag.h"
#include "common/rpc/error_map.h"
#include "common/rpc/loop.h"
#include "common/rpc/task.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/async_unary_call.h"

namespace cachalot::rpc {

struct ChannelOptions {
  int max_message_bytes = 4 * 1024 * 1024;
  int initial_backoff_ms = 50;  ///< before the first reconnect; doubles up to max_backoff_ms
  int max_backoff_ms = 1000;
  int connect_timeout_ms = 1000;  ///< one attempt to connect
};

/// `target` is "host:port", "dns:///name:port" or "unix:path". Never fails and does not connect before the
/// first call (or Connect). No retries, no proxy, no service config; own connection even if another channel
/// has the same target: make one channel per peer and loop.
std::shared_ptr<grpc::Channel> CreateChannel(const std::string& target, const ChannelOptions& options = {});

/// Starts connecting now, so that the first call finds a connection. Any thread.
void Connect(grpc::Channel* channel);

/// Waits until the channel is connected. DEADLINE_EXCEEDED names `target`; CANCELLED when the loop ends.
Task<Status> WaitConnected(Loop* loop, std::shared_ptr<grpc::Channel> channel, std::string target,
                           TimePoint deadline);

struct CallOptions {
  TimePoint deadline = TimePoint::max();  ///< of the whole call; unary calls must set one
  bool wait_for_ready = false;   ///< true: wait for a connection until the deadline instead of failing
  CancelScope* scope = nullptr;  ///< cancels the call when it is cancelled; must outlive the call
  std::vector<std::pair<std::string, std::string>> metadata;  ///< keys in lower case
};

/// One call's context, cancelled with its loop and its scope.
class ClientCall {
 public:
  ClientCall(Loop* loop, const CallOptions& options);
  ClientCall(const ClientCall&) = delete;
  ClientCall& operator=(const ClientCall&) = delete;

  grpc::ClientContext* context() { return &context_; }
  Loop* loop() const { return loop_; }
  void TryCancel() { context_.TryCancel(); }

 private:
  class Hook final : public CancelHook {
   public:
    explicit Hook(grpc::ClientContext* context) : context_(context) {}

   private:
    void OnCancel() override { context_->TryCancel(); }
    grpc::ClientContext* context_;
  };

  Loop* loop_;
  grpc::ClientContext context_;
  Hook loop_hook_{&context_}, scope_hook_{&context_};
};

/// co_await UnaryCall(loop, stub.get(), &proto::Decode::Stub::PrepareAsyncDescribe, request, {.deadline =
/// ...}). The stub must outlive the call. The status is the server's, or UNAVAILABLE, DEADLINE_EXCEEDED,
/// CANCELLED.
template <typename Stub, typename Req, typename Resp>
Task<StatusOr<Resp>> UnaryCall(Loop* loop, Stub* stub,
                               std::unique_ptr<grpc::ClientAsyncResponseReader<Resp>> (Stub::*prepare)(
                                   grpc::ClientContext*, const Req&, grpc::CompletionQueue*),
                               std::type_identity_t<Req> request, CallOptions options) {
  CHECK_MSG(options.deadline != TimePoint::max(), "a unary call without a deadline");
  ClientCall call(loop, options);
  std::unique_ptr<grpc::ClientAsyncResponseReader<Resp>> io =
      (stub->*prepare)(call.context(), request, loop->queue());
  Resp response;
  grpc::Status status;
  CqOperation finish([&](void* tag) {
    io->StartCall();
    io->Finish(&response, &status, tag);
  });
  co_await finish;
  if (!status.ok()) co_return FromGrpc(status, GivenByHandler(*call.context()));
  co_return std::move(response);
}

}  // namespace cachalot::rpc
