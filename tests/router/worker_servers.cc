#include "tests/router/worker_servers.h"

#include <algorithm>

namespace cachalot::testing {

bool Eventually(const std::function<bool()>& condition) {
  const TimePoint end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

v1::Compat TestCompat() {
  v1::Compat compat;
  compat.set_weights("abc");
  compat.set_protocol(1);
  compat.set_state_format(1);
  compat.set_mode("exact");
  compat.set_kv_layout("layout");
  compat.set_reduction_groups(8);
  compat.set_numerics("ref");
  return compat;
}

SequenceState TestState() {
  SequenceState state;
  state.request_id = "test";
  state.prompt = {1, 2, 3};
  state.emitted = {4, 5};
  state.params.max_tokens = 9;
  state.params.sampling = {0.5f, 3, 0.25f, 77};
  return state;
}

// ---- both

WorkerServer::WorkerServer(v1::Role role, const std::string& listen)
    : host_(listen.substr(0, listen.rfind(':'))),
      server_({.listen = listen}),
      loop_(server_.AddLoop({.name = "worker"})) {
  description.set_role(role);
  *description.mutable_compat() = TestCompat();
  server_.Unary(loop_, &cluster_, &v1::Cluster::AsyncService::RequestDescribe,
                [this](rpc::ServerCall& call, const v1::DescribeRequest&, v1::Description* response) {
                  return Describe(call, response);
                });
}

WorkerServer::~WorkerServer() = default;

void WorkerServer::Start() {
  const auto port = server_.Start();
  ASSERT_TRUE(port.ok()) << port.status();
  loop_->Start();
}

void WorkerServer::Script(const std::function<void()>& change) {
  std::lock_guard lock(mutex_);
  change();
}

rpc::Task<Status> WorkerServer::Describe(rpc::ServerCall& call, v1::Description* response) {
  bool hangs;
  {
    std::lock_guard lock(mutex_);
    describers.push_back(call.peer());
    *response = description;
    hangs = describe_hangs;
  }
  if (hangs) co_await call.cancelled().WaitUntil(TimePoint::max());
  co_return OkStatus();
}

// ---- decode

struct DecodeServer::Session {
  Session(rpc::ServerCall* call_, Stream* stream_)
      : call(call_), stream(stream_), writes(call->loop(), stream_, 1000), ended(call->loop()) {}
  rpc::ServerCall* call;
  Stream* stream;
  rpc::WriteQueue<Stream> writes;
  rpc::Event ended;
  Status end;
};

DecodeServer::DecodeServer(const std::string& listen) : WorkerServer(v1::ROLE_DECODE, listen) {
  server_.Bidi(loop_, &decode_, &v1::Decode::AsyncService::RequestSession,
               [this](rpc::ServerCall& call, Stream& stream) { return Serve(call, stream); });
  Start();
}

rpc::Task<Status> DecodeServer::Serve(rpc::ServerCall& call, Stream& stream) {
  auto session = std::make_shared<Session>(&call, &stream);
  session_ = session;
  Script([this] { ++sessions, ++open_sessions; });
  call.tasks().Spawn(Read(session), "session reader");
  call.tasks().Spawn(Beat(session), "session heartbeat");
  co_await session->ended.WaitUntil(TimePoint::max());
  while (!co_await session->writes.Flush(TimePoint::max())) co_await rpc::Yield(loop_);
  session->writes.Close();
  if (session_ == session) session_.reset();
  Script([this] { --open_sessions; });
  co_return session->end;
}

rpc::Task<void> DecodeServer::Read(std::shared_ptr<Session> session) {
  v1::SessionRequest request;
  while (co_await session->stream->Read(&request)) {
    bool answer = false, deaf = false;
    v1::SessionResponse response;
    {
      std::lock_guard lock(mutex_);
      received.push_back(request);
      if (request.has_hello()) {
        answer = answers_hello;
        if ((deaf = deaf_sessions > 0)) --deaf_sessions;
        session->end = refuses_hello;
        response.mutable_hello()->set_heartbeat_ms(asks_for_heartbeats_ms);
        if (reserve_ahead) response.mutable_hello()->set_reserve_ahead_tokens(*reserve_ahead);
        *response.mutable_hello()->mutable_load() = description.load();
      }
    }
    if (!session->end.ok()) break;
    if (answer) (void)session->writes.Push(std::move(response));
    if (deaf) co_await session->call->cancelled().WaitUntil(TimePoint::max());
  }
  session->ended.Set();
}

rpc::Task<void> DecodeServer::Beat(std::shared_ptr<Session> session) {
  bool over = false;
  while (!over && !loop_->draining()) {
    bool beat;
    {
      std::lock_guard lock(mutex_);
      beat = beats;
    }
    v1::SessionResponse response;
    response.mutable_heartbeat();
    if (beat) (void)session->writes.Push(std::move(response));
    over = co_await session->ended.WaitFor(std::chrono::milliseconds(10));
  }
}

void DecodeServer::Send(v1::SessionResponse response) {
  loop_->Post([this, response = std::move(response)] {
    if (session_) (void)session_->writes.Push(response);
  });
}

void DecodeServer::SendGranted(uint64_t handle, uint64_t lease) {
  v1::SessionResponse response;
  response.mutable_granted()->set_handle(handle);
  response.mutable_granted()->mutable_lease()->set_id(lease);
  response.mutable_granted()->mutable_lease()->set_epoch(99);
  Send(std::move(response));
}

void DecodeServer::SendFailed(uint64_t handle, int code, const std::string& message) {
  v1::SessionResponse response;
  response.mutable_failed()->set_handle(handle);
  response.mutable_failed()->set_code(code);
  response.mutable_failed()->set_message(message);
  Send(std::move(response));
}

void DecodeServer::SendTokens(const std::vector<uint64_t>& handles, int64_t index, int32_t token) {
  v1::SessionResponse response;
  v1::StepBatch& batch = *response.mutable_step();
  for (uint64_t handle : handles) {
    batch.add_handles(handle);
    batch.add_indices(index);
    batch.add_tokens(token++);
    batch.add_finish(v1::STEP_FINISH_NONE);
  }
  batch.mutable_load()->set_running_sequences(static_cast<int64_t>(handles.size()));
  batch.mutable_load()->set_free_kv_tokens(1234);
  Send(std::move(response));
}

void DecodeServer::End(Status status) {
  loop_->Post([this, status] {
    if (!session_) return;
    session_->end = status;
    session_->ended.Set();
  });
}

std::vector<v1::SessionRequest> DecodeServer::Received(v1::SessionRequest::MessageCase kind) {
  std::lock_guard lock(mutex_);
  std::vector<v1::SessionRequest> found;
  std::copy_if(received.begin(), received.end(), std::back_inserter(found),
               [kind](const auto& request) { return request.message_case() == kind; });
  return found;
}

std::vector<v1::SessionRequest> DecodeServer::Await(v1::SessionRequest::MessageCase kind, size_t count) {
  EXPECT_TRUE(Eventually([&] { return Received(kind).size() >= count; }))
      << "message " << kind << " does not come";
  return Received(kind);
}

// ---- prefill

PrefillServer::PrefillServer(const std::string& listen) : WorkerServer(v1::ROLE_PREFILL, listen) {
  server_.ServerStreaming(
      loop_, &prefill_, &v1::Prefill::AsyncService::RequestPrefill,
      [this](rpc::ServerCall& call, const v1::PrefillRequest& request,
             rpc::ServerWriter<v1::PrefillEvent>& writer) { return Serve(call, request, writer); });
  Start();
}

rpc::Task<Status> PrefillServer::Serve(rpc::ServerCall& call, const v1::PrefillRequest& request,
                                       rpc::ServerWriter<v1::PrefillEvent>& writer) {
  auto orders = std::make_shared<rpc::AsyncQueue<Order>>(loop_);
  orders_ = orders;
  Script([&] {
    requests.push_back(request);
    ++open_calls;
  });
  rpc::CancelCallback gone(&call.scope(), [orders] { orders->Close(); });
  Status status = Cancelled("the caller has gone");
  for (;;) {
    std::optional<Order> order = co_await orders->PopUntil(TimePoint::max());
    if (!order) break;
    if (!order->event) {
      status = order->end;
      break;
    }
    co_await writer.Write(*order->event);
  }
  Script([&] {
    --open_calls;
    cancelled += call.is_cancelled();
  });
  co_return status;
}

void PrefillServer::Post(Order order) {
  loop_->Post([this, order = std::move(order)] {
    if (orders_) orders_->Push(order);
  });
}

void PrefillServer::Send(v1::PrefillEvent event) { Post({std::move(event), OkStatus()}); }
void PrefillServer::End(Status status) { Post({std::nullopt, std::move(status)}); }

void PrefillServer::SendProgress() {
  v1::PrefillEvent event;
  event.mutable_progress()->set_tokens_done(1);
  Send(std::move(event));
}

void PrefillServer::SendFirstToken(int32_t token, v1::StepFinish finish) {
  v1::PrefillEvent event;
  event.mutable_first_token()->set_token(token);
  event.mutable_first_token()->set_finish(finish);
  Send(std::move(event));
}

void PrefillServer::SendCommitted() {
  v1::PrefillEvent event;
  event.mutable_committed()->set_tokens(5);
  Send(std::move(event));
}

// ---- the router

void ClientTest::StopLoop() {
  loop_.Shutdown(Duration::zero());
  EXPECT_TRUE(loop_.Join(loop_.Now() + kPatience));
}

namespace {
rpc::Task<std::optional<FlowEvent>> Pop(rpc::Loop* loop, std::shared_ptr<FlowQueue> queue) {
  std::optional<FlowEvent> event = co_await queue->PopUntil(loop->Now() + kPatience);
  if (event) event->hold.reset();  // a thing of the loop
  co_return event;
}
}  // namespace

FlowEvent ClientTest::Next(const std::shared_ptr<FlowQueue>& queue) {
  auto event = rpc::BlockOn(&loop_, Pop(&loop_, queue), 2 * kPatience, "an event");
  EXPECT_TRUE(event.ok() && event->has_value()) << "no event comes";
  if (event.ok() && event->has_value()) return std::move(**event);
  FlowEvent none;
  none.kind = FlowEvent::Kind::kCancelled;
  return none;
}

}  // namespace cachalot::testing
