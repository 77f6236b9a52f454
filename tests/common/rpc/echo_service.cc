#include "tests/common/rpc/echo_service.h"

#include <functional>
#include <utility>

#include "common/rpc/slices.h"
#include "common/rpc/write_queue.h"

namespace cachalot::rpc {

EchoServer::EchoServer(ServerOptions options)
    : server_(std::move(options)),
      control_(server_.AddLoop({.name = "control"})),
      step_(server_.AddLoop({.name = "step", .spin_us = 20}, /*listens=*/false)) {
  server_.Unary(control_, &service_, &Service::RequestSay, std::bind_front(&EchoServer::Say, this));
  server_.ServerStreaming(control_, &service_, &Service::RequestCount,
                          std::bind_front(&EchoServer::Count, this));
  server_.Bidi(control_, &service_, &Service::RequestChat, std::bind_front(&EchoServer::Chat, this));
  server_.Bidi(step_, &service_, &Service::RequestFrames, std::bind_front(&EchoServer::Frames, this));
}

EchoServer::~EchoServer() {
  server_.Shutdown(Duration::zero());
  if (step_thread_.joinable()) step_thread_.join();
}

Status EchoServer::Start() {
  RETURN_IF_ERROR(server_.Start().status());
  control_->Start();
  step_thread_ = std::thread([this] {
    while (step_->PollOnce(step_->Now() + std::chrono::milliseconds(50)) != Loop::Poll::kStopped) {
    }
  });
  return OkStatus();
}

// "fail": an error; "hold": waits for the caller to give up; "meta": echoes metadata; else the text.
Task<Status> EchoServer::Say(ServerCall& call, const test::EchoRequest& request, test::EchoReply* reply) {
  if (request.text() == "fail") co_return NotFound("no echo here");
  if (request.text() == "bug") co_return Internal("a bug of the handler");
  if (request.text() == "hold") {
    ++open;
    co_await call.cancelled().WaitUntil(TimePoint::max());
    if (call.is_cancelled()) ++cancelled;
    --open;
    co_return Cancelled("gave up");
  }
  reply->set_text(request.text() == "meta" ? call.Metadata("x-test").value_or("none") : request.text());
  reply->set_index(call.deadline() == TimePoint::max() ? 0 : 1);
  co_return OkStatus();
}

Task<Status> EchoServer::Count(ServerCall& call, const test::EchoRequest& request,
                               ServerWriter<test::EchoReply>& writer) {
  ++open;
  if (request.text() == "accepted") co_await writer.SendInitialMetadata();
  test::EchoReply reply;
  for (int i = 0; i < request.count() || request.count() == 0; ++i) {
    reply.set_index(i);
    if (!co_await writer.Write(reply)) break;
    if (request.text() == "one") co_await call.cancelled().WaitUntil(TimePoint::max());
  }
  if (writer.dead() || call.is_cancelled()) ++cancelled;
  --open;
  co_return OkStatus();
}

// Echoes through a write queue, with the reader as a task of the call. "end" ends the call while the client
// writes.
Task<Status> EchoServer::Chat(ServerCall& call, ServerStream<test::EchoRequest, test::EchoReply>& stream) {
  ++open;
  WriteQueue<ServerStream<test::EchoRequest, test::EchoReply>> queue(call.loop(), &stream, 4);
  test::EchoRequest request;
  Status status = OkStatus();
  while (co_await stream.Read(&request)) {
    if (request.text() == "end") {
      status = Aborted("as asked");
      break;
    }
    test::EchoReply reply;
    reply.set_text(request.text());
    co_await queue.PushUntil(std::move(reply), TimePoint::max());
  }
  co_await queue.Flush(TimePoint::max());
  --open;
  co_return status;
}

// Sends the frame back without touching its bytes.
Task<Status> EchoServer::Frames(ServerCall&, RawServerStream& stream) {
  ++open;
  grpc::ByteBuffer frame;
  while (co_await stream.Read(&frame)) {
    if (!co_await stream.Write(frame)) break;
  }
  --open;
  co_return OkStatus();
}

}  // namespace cachalot::rpc
