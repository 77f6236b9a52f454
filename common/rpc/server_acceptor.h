#pragma once
// Behind Server's registration: coroutines that ask gRPC for the next call of a method, hand it to its
// handler and ask again. One acceptor is one outstanding request; Server starts a few per method.

#include <functional>
#include <memory>
#include <utility>

#include "common/base/status.h"
#include "common/rpc/error_map.h"
#include "common/rpc/server_call.h"
#include "common/rpc/task.h"

namespace cachalot::rpc {

template <typename Req, typename Resp>
using UnaryHandler = std::function<Task<Status>(ServerCall&, const Req&, Resp*)>;
template <typename Req, typename Resp>
using ServerStreamingHandler = std::function<Task<Status>(ServerCall&, const Req&, ServerWriter<Resp>&)>;
template <typename Req, typename Resp>
using BidiHandler = std::function<Task<Status>(ServerCall&, ServerStream<Req, Resp>&)>;

namespace internal {

template <typename Base, typename Req, typename Resp>
using RequestUnary = void (Base::*)(grpc::ServerContext*, Req*, grpc::ServerAsyncResponseWriter<Resp>*,
                                    grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*);
template <typename Base, typename Req, typename Resp>
using RequestServerStreaming = void (Base::*)(grpc::ServerContext*, Req*, grpc::ServerAsyncWriter<Resp>*,
                                              grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*);
template <typename Base, typename Req, typename Resp>
using RequestBidi = void (Base::*)(grpc::ServerContext*, grpc::ServerAsyncReaderWriter<Resp, Req>*,
                                   grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*);

template <typename Handler>
using Shared = std::shared_ptr<const Handler>;
template <typename Handler>
Shared<Handler> Share(Handler handler) {
  return std::make_shared<const Handler>(std::move(handler));
}

template <typename Req, typename Resp>
struct UnaryCallState {
  UnaryCallState(Loop* loop, LiveCalls* live) : call(loop, live), io(call.context()) {}
  ServerCall call;
  grpc::ServerAsyncResponseWriter<Resp> io;
  Req request;
  Resp response;
};

template <typename Req, typename Resp>
struct ServerStreamingCallState {
  ServerStreamingCallState(Loop* loop, LiveCalls* live) : call(loop, live), writer(&call) {}
  ServerCall call;
  ServerWriter<Resp> writer;
  Req request;
};

template <typename Req, typename Resp>
struct BidiCallState {
  BidiCallState(Loop* loop, LiveCalls* live) : call(loop, live), stream(&call) {}
  ServerCall call;
  ServerStream<Req, Resp> stream;
};

/// What the call ends with, marked as its handler's when it is an error.
inline grpc::Status EndOf(ServerCall& call, const Status& status) {
  if (!status.ok()) call.AddTrailingMetadata(kHandlerErrorKey, "1");
  return ToGrpc(status);
}

template <typename Req, typename Resp>
Task<void> ServeUnary(std::unique_ptr<UnaryCallState<Req, Resp>> state,
                      Shared<UnaryHandler<Req, Resp>> handler) {
  UnaryCallState<Req, Resp>* s = state.get();
  Task<Status> handling = (*handler)(s->call, s->request, &s->response);
  const grpc::Status status = EndOf(s->call, co_await std::move(handling));
  CqOperation finish([s, &status](void* tag) {
    status.ok() ? s->io.Finish(s->response, status, tag) : s->io.FinishWithError(status, tag);
  });
  co_await finish;
  co_await s->call.WaitReleased();
}

template <typename Req, typename Resp>
Task<void> ServeServerStreaming(std::unique_ptr<ServerStreamingCallState<Req, Resp>> state,
                                Shared<ServerStreamingHandler<Req, Resp>> handler) {
  ServerStreamingCallState<Req, Resp>* s = state.get();
  Task<Status> handling = (*handler)(s->call, s->request, s->writer);
  const grpc::Status status = EndOf(s->call, co_await std::move(handling));
  CqOperation finish([s, &status](void* tag) { s->writer.io()->Finish(status, tag); });
  co_await finish;
  co_await s->call.WaitReleased();
}

template <typename Req, typename Resp>
Task<void> ServeBidi(std::unique_ptr<BidiCallState<Req, Resp>> state,
                     Shared<BidiHandler<Req, Resp>> handler) {
  BidiCallState<Req, Resp>* s = state.get();
  Task<Status> handling = (*handler)(s->call, s->stream);
  const grpc::Status status = EndOf(s->call, co_await std::move(handling));
  CqOperation finish([s, &status](void* tag) { s->stream.io()->Finish(status, tag); });
  co_await finish;
  co_await s->call.WaitReleased();
}

// A request that fails means that the server shuts down. gRPC then never delivers the done tag, so the state
// goes.

template <typename Base, typename Req, typename Resp>
Task<void> AcceptUnary(Loop* loop, LiveCalls* live, Base* service, RequestUnary<Base, Req, Resp> request,
                       Shared<UnaryHandler<Req, Resp>> handler) {
  for (;;) {
    auto state = std::make_unique<UnaryCallState<Req, Resp>>(loop, live);
    UnaryCallState<Req, Resp>* s = state.get();
    s->call.ExpectDone();
    CqOperation accept([=](void* tag) {
      (service->*request)(s->call.context(), &s->request, &s->io, loop->queue(), loop->server_queue(), tag);
    });
    const bool accepted = co_await accept;
    if (!accepted) co_return;
    loop->Spawn(ServeUnary<Req, Resp>(std::move(state), handler), "unary call");
  }
}

template <typename Base, typename Req, typename Resp>
Task<void> AcceptServerStreaming(Loop* loop, LiveCalls* live, Base* service,
                                 RequestServerStreaming<Base, Req, Resp> request,
                                 Shared<ServerStreamingHandler<Req, Resp>> handler) {
  for (;;) {
    auto state = std::make_unique<ServerStreamingCallState<Req, Resp>>(loop, live);
    ServerStreamingCallState<Req, Resp>* s = state.get();
    s->call.ExpectDone();
    CqOperation accept([=](void* tag) {
      (service->*request)(s->call.context(), &s->request, s->writer.io(), loop->queue(), loop->server_queue(),
                          tag);
    });
    const bool accepted = co_await accept;
    if (!accepted) co_return;
    loop->Spawn(ServeServerStreaming<Req, Resp>(std::move(state), handler), "server-streaming call");
  }
}

template <typename Base, typename Req, typename Resp>
Task<void> AcceptBidi(Loop* loop, LiveCalls* live, Base* service, RequestBidi<Base, Req, Resp> request,
                      Shared<BidiHandler<Req, Resp>> handler) {
  for (;;) {
    auto state = std::make_unique<BidiCallState<Req, Resp>>(loop, live);
    BidiCallState<Req, Resp>* s = state.get();
    s->call.ExpectDone();
    CqOperation accept([=](void* tag) {
      (service->*request)(s->call.context(), s->stream.io(), loop->queue(), loop->server_queue(), tag);
    });
    const bool accepted = co_await accept;
    if (!accepted) co_return;
    loop->Spawn(ServeBidi<Req, Resp>(std::move(state), handler), "bidi call");
  }
}

}  // namespace internal
}  // namespace cachalot::rpc
