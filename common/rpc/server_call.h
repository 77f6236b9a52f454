#pragma once
// What a handler knows about its call, and the streams that it reads and writes. All on the call's loop.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "common/base/time.h"
#include "common/rpc/cancel_scope.h"
#include "common/rpc/cq_tag.h"
#include "common/rpc/event.h"
#include "common/rpc/task_group.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/async_stream.h"

namespace cachalot::rpc {

/// The calls of a server, those that its acceptors wait for included: none are left when it has been shut down
/// and the last one is over. Any thread.
class LiveCalls {
 public:
  void Add();
  void Remove();
  void NoteEnd(TimePoint when);
  /// False when some are left at `deadline`.
  bool WaitNone(TimePoint deadline);
  /// When gRPC was done with the last one that a client had made.
  TimePoint last_end() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable none_;
  int64_t count_ = 0;
  TimePoint last_end_ = TimePoint::min();
};

class ServerCall {
 public:
  ServerCall(Loop* loop, LiveCalls* live);
  ~ServerCall();
  ServerCall(const ServerCall&) = delete;
  ServerCall& operator=(const ServerCall&) = delete;

  Loop* loop() const { return loop_; }
  /// For example "ipv4:127.0.0.1:51234".
  std::string peer() const { return context_.peer(); }
  /// The caller's deadline on our monotonic clock; TimePoint::max() when it set none.
  TimePoint deadline() const { return FromGprTime(context_.raw_deadline()); }
  /// The first value under `key` (lower case) of what the client sent.
  std::optional<std::string> Metadata(std::string_view key) const;
  /// Before the first write (or SendInitialMetadata).
  void AddInitialMetadata(const std::string& key, const std::string& value);
  /// Before the handler returns.
  void AddTrailingMetadata(const std::string& key, const std::string& value);

  /// Set when the client cancelled, went away or its deadline passed, and at the end of a shutdown's grace.
  Event& cancelled() { return cancelled_; }
  bool is_cancelled() const { return cancelled_.is_set(); }
  /// Cancelled together with `cancelled()`. Put client calls made for this call in it (CallOptions::scope),
  /// or hang a CancelCallback on it that closes the queue that the handler waits for.
  CancelScope& scope() { return scope_; }
  /// Tasks beside the handler, such as the reader of a bidi stream: the call lives until they have ended.
  /// They need not be joined: once the handler returns, pending reads fail.
  TaskGroup& tasks() { return tasks_; }
  /// Ends the call with CANCELLED at both sides; pending operations fail.
  void TryCancel() { context_.TryCancel(); }

  // For the acceptors in server.h.
  grpc::ServerContext* context() { return &context_; }
  void ExpectDone() { context_.AsyncNotifyWhenDone(done_tag_.Arm()); }
  /// After the status has been sent: waits until gRPC and the tasks have let go of the call.
  Task<void> WaitReleased();

 private:
  class DoneTag final : public CqTag {
   public:
    explicit DoneTag(ServerCall* call) : call_(call) {}
    void Complete(bool) override { call_->OnDone(); }

   private:
    ServerCall* call_;
  };
  void OnDone();

  Loop* loop_;
  LiveCalls* live_;
  grpc::ServerContext context_;
  DoneTag done_tag_{this};
  Event cancelled_;
  CancelScope scope_;
  TaskGroup tasks_;
  std::coroutine_handle<> waits_for_done_;
  bool done_ = false;
};

/// The sending side of a server-streaming call.
template <typename Resp>
class ServerWriter {
 public:
  explicit ServerWriter(ServerCall* call) : io_(call->context()) {}

  /// co_await: false when the call is dead; every later write fails too. One write at a time. The first write
  /// sends the initial metadata. `message` may change once this has returned.
  auto Write(const Resp& message, grpc::WriteOptions options = {}) {
    return StreamOperation(&writes_,
                           [this, &message, options](void* tag) { io_.Write(message, options, tag); });
  }
  /// co_await, before any write: the client sees the call accepted. Otherwise nothing is sent before the
  /// first write.
  auto SendInitialMetadata() {
    return StreamOperation(&writes_, [this](void* tag) { io_.SendInitialMetadata(tag); });
  }
  bool dead() const { return writes_.dead; }

  // For the acceptors.
  grpc::ServerAsyncWriter<Resp>* io() { return &io_; }

 private:
  grpc::ServerAsyncWriter<Resp> io_;
  StreamDirection writes_;
};

/// Both sides of a bidi call. Req = Resp = grpc::ByteBuffer for raw methods.
template <typename Req, typename Resp>
class ServerStream {
 public:
  using WriteMessage = Resp;
  explicit ServerStream(ServerCall* call) : io_(call->context()) {}

  /// co_await: false when the client has half-closed or the call is dead. One read at a time.
  auto Read(Req* message) {
    return StreamOperation(&reads_, [this, message](void* tag) { io_.Read(message, tag); });
  }
  /// As ServerWriter::Write. A read and a write may be in flight together.
  auto Write(const Resp& message, grpc::WriteOptions options = {}) {
    return StreamOperation(&writes_,
                           [this, &message, options](void* tag) { io_.Write(message, options, tag); });
  }
  auto SendInitialMetadata() {
    return StreamOperation(&writes_, [this](void* tag) { io_.SendInitialMetadata(tag); });
  }
  bool dead() const { return writes_.dead; }

  // For the acceptors.
  grpc::ServerAsyncReaderWriter<Resp, Req>* io() { return &io_; }

 private:
  grpc::ServerAsyncReaderWriter<Resp, Req> io_;
  StreamDirection reads_, writes_;
};

using RawServerStream = ServerStream<grpc::ByteBuffer, grpc::ByteBuffer>;

}  // namespace cachalot::rpc
