#pragma once
// Streaming calls of a client. Every operation is safe in every state: on a call that is dead, was never
// started or has finished, reads and writes give false at once and Finish gives the status.
//
//   Start -> Read/Write ... -> WritesDone -> Finish. To stop early: TryCancel, then Finish.
//
// No operation may be in flight when the object is destroyed; a started call that was not finished is
// cancelled then.

#include <coroutine>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "common/base/check.h"
#include "common/base/status.h"
#include "common/rpc/client.h"
#include "common/rpc/cq_tag.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/async_stream.h"
#include "grpcpp/support/byte_buffer.h"

namespace cachalot::rpc {

/// What both kinds of stream share. `Io` is gRPC's reader or reader-writer. Start and Finish come one after
/// the other, reads and writes beside each other.
template <typename Io, typename Resp>
class ClientStreamBase {
 public:
  ClientStreamBase(const ClientStreamBase&) = delete;
  ClientStreamBase& operator=(const ClientStreamBase&) = delete;

  /// co_await: false at the end of the stream; Finish says why. One read at a time.
  auto Read(Resp* message) {
    return StreamOperation(&reads_, [this, message](void* tag) { io_->Read(message, tag); });
  }

  /// Waits for the server's status; pending messages are dropped, pending reads fail. Again: the same status.
  /// A call that does not end by itself must be cancelled first, or have a deadline.
  Task<Status> Finish() {
    if (!io_) co_return Cancelled("the call was never started");
    if (!finished_) {
      CHECK_MSG(!finishing_, "two Finish at once on one stream");
      finishing_ = true;
      grpc::Status status;
      CqOperation finish([&](void* tag) { io_->Finish(&status, tag); });
      co_await finish;
      reads_.dead = writes_.dead = true;
      finished_ = FromGrpc(status, GivenByHandler(*call_.context()));
    }
    co_return *finished_;
  }

  /// Any state, any thread: pending operations fail soon, Finish gives CANCELLED unless the call had ended.
  void TryCancel() { call_.TryCancel(); }
  bool started() const { return io_ != nullptr; }
  /// Nothing more can be written.
  bool dead() const { return writes_.dead; }
  Loop* loop() const { return call_.loop(); }

 protected:
  ClientStreamBase(Loop* loop, const CallOptions& options) : call_(loop, options) {
    reads_.dead = writes_.dead = true;  // until started
  }
  ~ClientStreamBase() {
    CHECK_MSG(!reads_.busy && !writes_.busy && (!finishing_ || finished_),
              "a stream destroyed under its operations");
    if (io_ && !finished_) call_.TryCancel();
  }

  /// False when the call could not be started (Finish says why).
  Task<bool> StartCall(std::unique_ptr<Io> io) {
    CHECK_MSG(!io_, "a stream started twice");
    io_ = std::move(io);
    CqOperation start([this](void* tag) { io_->StartCall(tag); });
    writes_.busy = true;
    const bool ok = co_await start;
    writes_.busy = false;
    reads_.dead = writes_.dead = !ok;
    co_return ok;
  }

  ClientCall call_;
  std::unique_ptr<Io> io_;
  StreamDirection reads_, writes_;

 private:
  std::optional<Status> finished_;
  bool finishing_ = false;
};

/// The client of a server-streaming method.
template <typename Resp>
class ClientReader : public ClientStreamBase<grpc::ClientAsyncReader<Resp>, Resp> {
 public:
  ClientReader(Loop* loop, const CallOptions& options)
      : ClientStreamBase<grpc::ClientAsyncReader<Resp>, Resp>(loop, options) {}

  /// co_await stream.Start(stub.get(), &proto::Inference::Stub::PrepareAsyncGenerate, request).
  template <typename Stub, typename Req>
  Task<bool> Start(Stub* stub,
                   std::unique_ptr<grpc::ClientAsyncReader<Resp>> (Stub::*prepare)(grpc::ClientContext*,
                                                                                   const Req&,
                                                                                   grpc::CompletionQueue*),
                   const std::type_identity_t<Req>& request) {
    // The request is serialized here, before the task runs.
    return this->StartCall((stub->*prepare)(this->call_.context(), request, this->loop()->queue()));
  }
};

/// The client of a bidi method. Req = Resp = grpc::ByteBuffer with StartRaw for raw frames.
template <typename Req, typename Resp>
class ClientStream : public ClientStreamBase<grpc::ClientAsyncReaderWriter<Req, Resp>, Resp> {
 public:
  using WriteMessage = Req;
  ClientStream(Loop* loop, const CallOptions& options)
      : ClientStreamBase<grpc::ClientAsyncReaderWriter<Req, Resp>, Resp>(loop, options) {}

  /// co_await stream.Start(stub.get(), &proto::Decode::Stub::PrepareAsyncSession).
  template <typename Stub>
  Task<bool> Start(Stub* stub, std::unique_ptr<grpc::ClientAsyncReaderWriter<Req, Resp>> (Stub::*prepare)(
                                   grpc::ClientContext*, grpc::CompletionQueue*)) {
    return this->StartCall((stub->*prepare)(this->call_.context(), this->loop()->queue()));
  }

  /// `method` is "/package.Service/Method". Only for ByteBuffer streams.
  Task<bool> StartRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) requires
      std::is_same_v<Req, grpc::ByteBuffer> && std::is_same_v<Resp, grpc::ByteBuffer> {
    grpc::GenericStub stub(channel);
    return this->StartCall(stub.PrepareCall(this->call_.context(), method, this->loop()->queue()));
  }

  /// co_await: false when the stream is dead. One write at a time; `message` may change once this has
  /// returned.
  auto Write(const Req& message, grpc::WriteOptions options = {}) {
    return StreamOperation(&this->writes_,
                           [this, &message, options](void* tag) { this->io_->Write(message, options, tag); });
  }
  /// co_await: half-closes. No write may follow.
  auto WritesDone() {
    return StreamOperation(&this->writes_, [this](void* tag) { this->io_->WritesDone(tag); });
  }
};

using RawClientStream = ClientStream<grpc::ByteBuffer, grpc::ByteBuffer>;

}  // namespace cachalot::rpc
