#include "router/decode_client.h"

#include <algorithm>
#include <cstring>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/base/seconds_text.h"
#include "common/rpc/event.h"

namespace cachalot {
namespace {

constexpr int kSessionMessageBytes = 16 << 20;
constexpr int64_t kAcknowledgeEvery = 16;  // tokens; the window is far larger

}  // namespace

struct DecodeClient::Session {
  Session(rpc::Loop* loop, const rpc::CallOptions& options, size_t queue_limit)
      : stream(loop, options), writes(loop, &stream, queue_limit), beats(loop), news(loop) {}

  Stream stream;
  rpc::WriteQueue<Stream> writes;
  rpc::TaskGroup beats;
  rpc::Event news;  // for the heartbeat: another interval, or the end
  bool over = false;
  TimePoint last_heard;
  Duration beat;  // how often we show that we are alive
  Status broken;  // why we ended it
  void Break(Status why) {
    if (broken.ok()) broken = std::move(why);
    stream.TryCancel();
  }
};

class DecodeClient::Call final : public RemoteLease {
 public:
  Call(DecodeClient* owner, uint64_t handle, std::shared_ptr<FlowQueue> queue)
      : owner_(owner), handle_(handle), queue_(std::move(queue)) {
    owner_->calls_[handle_] = this;
  }
  ~Call() override {
    if (owner_->calls_.erase(handle_) == 0) return;  // it has failed: the worker forgot it already
    v1::SessionRequest close;
    close.mutable_close()->set_handle(handle_);
    owner_->Send(std::move(close));
  }

  void Acknowledge(int64_t next_index) override {
    if (next_index - acknowledged_ < kAcknowledgeEvery || owner_->Find(handle_) != this) return;
    acknowledged_ = next_index;
    v1::SessionRequest request;
    request.mutable_acknowledge()->add_handles(handle_);
    request.mutable_acknowledge()->add_next_index(next_index);
    owner_->Send(std::move(request));
  }
  const v1::Lease& lease() const override { return lease_; }
  const std::string& address() const override { return owner_->address_; }

  void Granted(const v1::Granted& granted) {
    lease_ = granted.lease();
    FlowEvent event;
    event.kind = FlowEvent::Kind::kGranted;
    queue_->Push(std::move(event));
  }
  void Token(int64_t index, int32_t token, FinishReason finish, const std::string& logits,
             std::optional<TokenLogprobs> logprobs) {
    FlowEvent event;
    event.kind = FlowEvent::Kind::kToken;
    event.index = index;
    event.token = token;
    event.finish = finish;
    event.logits.resize(logits.size() / sizeof(float));
    if (!event.logits.empty())
      std::memcpy(event.logits.data(), logits.data(), event.logits.size() * sizeof(float));
    if (logprobs) event.logprobs.push_back(std::move(*logprobs));
    queue_->Push(std::move(event));
  }
  void Preempted(int64_t next_index) {
    FlowEvent event;
    event.kind = FlowEvent::Kind::kPreempted;
    event.index = next_index;
    queue_->Push(std::move(event));
  }
  void Failed(Status status) {
    FlowEvent event;
    event.kind = FlowEvent::Kind::kDecodeFailed;
    event.error = std::move(status);
    queue_->Push(std::move(event));
  }

 private:
  DecodeClient* owner_;
  const uint64_t handle_;
  std::shared_ptr<FlowQueue> queue_;
  v1::Lease lease_;
  int64_t acknowledged_ = 0;
};

DecodeClient::DecodeClient(rpc::Loop* loop, std::string address, uint64_t router_epoch, ClusterView* cluster,
                           DecodeClientOptions options)
    : loop_(loop),
      address_(std::move(address)),
      router_epoch_(router_epoch),
      cluster_(cluster),
      options_(options) {
  NewChannel();
}

DecodeClient::~DecodeClient() = default;

// A connection whose peer has vanished without a word looks alive for many minutes: one that is silent is
// left behind.
void DecodeClient::NewChannel() {
  channel_ = rpc::CreateChannel(address_, {.max_message_bytes = kSessionMessageBytes});
  stub_ = v1::Decode::NewStub(channel_);
  describe_stub_ = v1::Cluster::NewStub(channel_);
}

rpc::Task<void> DecodeClient::Run() {
  while (!loop_->stopping() && !stopped_) {
    Status status = co_await RunSession();
    if (stopped_) status = Unavailable("it has left");
    const Status ended =
        Annotate(status.ok() ? Unavailable("the session ended") : status, "decode worker " + address_);
    if (StatusMessage(health_) != StatusMessage(ended) && !stopped_)
      LogWarning(StatusMessage(ended) + "; connecting again");
    health_ = ended;
    FailAll(MakeStatus(StatusCode::kUnavailable, StatusMessage(ended)));
    if (ended.code() == StatusCode::kDeadlineExceeded) NewChannel();
    if (!stopped_) co_await rpc::SleepFor(loop_, options_.reconnect_delay, &loop_->scope());
  }
  cluster_->Leave(this);
}

void DecodeClient::Stop() {
  stopped_ = true;
  if (session_ != nullptr) session_->Break(Unavailable("it has left"));
}

void DecodeClient::Leave() {
  left_ = true;
  cluster_->Leave(this);
}

bool DecodeClient::Rejoin() {
  // One that is not connected is described again before it is used.
  if (health_.ok() && !cluster_->Admit(this, description_.compat(), "decode worker " + address_).ok()) return false;
  left_ = false;
  return true;
}

/// The worker's identity before it is trusted with a session.
rpc::Task<Status> DecodeClient::Describe() {
  auto description =
      co_await rpc::UnaryCall(loop_, describe_stub_.get(), &v1::Cluster::Stub::PrepareAsyncDescribe,
                              v1::DescribeRequest(), {.deadline = loop_->Now() + options_.connect_timeout});
  CO_RETURN_IF_ERROR(description.status());
  CO_RETURN_IF_ERROR(CheckRole(v1::ROLE_DECODE, description->role()));
  CO_RETURN_IF_ERROR(cluster_->Admit(this, description->compat(), "decode worker " + address_, !left_));
  if (description_.epoch() != 0 && description_.epoch() != description->epoch())
    LogInfo("decode worker " + address_ + " has restarted: epoch " + HexId(description->epoch()));
  description_ = std::move(*description);
  co_return OkStatus();
}

rpc::Task<Status> DecodeClient::RunSession() {
  const Status described = co_await Describe();
  CO_RETURN_IF_ERROR(described);
  // It may have been taken out of the pool meanwhile, before anyone had said what the cluster is.
  if (stopped_ || !cluster_->compat()) co_return Unavailable("it has left");
  Session session(loop_, {}, options_.queue_limit);
  session.beat = options_.heartbeat_interval;
  const bool started = co_await session.stream.Start(stub_.get(), &v1::Decode::Stub::PrepareAsyncSession);
  if (!started) {
    Status status = co_await session.stream.Finish();
    co_return status;
  }
  session.last_heard = loop_->Now();
  session_ = &session;
  if (stopped_) session.Break(Unavailable("it has left"));
  v1::SessionRequest hello;
  *hello.mutable_hello()->mutable_compat() = *cluster_->compat();
  hello.mutable_hello()->set_router_epoch(router_epoch_);
  hello.mutable_hello()->set_takes_preemption(true);
  Send(std::move(hello));
  session.beats.Spawn(Beat(&session), "decode session heartbeat");
  v1::SessionResponse response;
  while (session.broken.ok()) {
    const bool read = co_await session.stream.Read(&response);
    if (!read) break;
    session.last_heard = loop_->Now();
    Dispatch(response);
  }
  session_ = nullptr;
  if (health_.ok()) health_ = Unavailable("decode worker " + address_ + ": its session is ending");
  session.writes.Close();
  // The stream has ended or we broke it. Cancelling it now could hide the status that says why it ended.
  Status status = co_await session.stream.Finish();
  session.over = true;
  session.news.Set();
  co_await session.beats.JoinAll();
  for (;;) {
    const bool flushed = co_await session.writes.Flush(TimePoint::max());
    if (flushed) break;
    co_await rpc::Yield(loop_);
  }
  co_return session.broken.ok() ? status : session.broken;
}

/// Our signs of life, and the watch over the worker's.
rpc::Task<void> DecodeClient::Beat(Session* session) {
  for (;;) {
    const TimePoint next = loop_->Now() + session->beat;
    co_await session->news.WaitUntil(next);
    session->news.Reset();
    if (session->over) co_return;
    if (loop_->stopping()) co_return session->Break(Unavailable("the router is shutting down"));
    if (loop_->Now() - session->last_heard >= options_.silence_limit)
      co_return session->Break(
          DeadlineExceeded("no sign of life for " + SecondsText(options_.silence_limit)));
    v1::SessionRequest beat;
    beat.mutable_heartbeat();
    Send(std::move(beat));
  }
}

void DecodeClient::Send(v1::SessionRequest request) {
  if (session_ == nullptr) return;
  using Writes = rpc::WriteQueue<Stream>;
  if (session_->writes.Push(std::move(request)) == Writes::Pushed::kFull)
    session_->Break(Unavailable("it reads too slowly: " + std::to_string(options_.queue_limit) +
                                " messages wait for it"));
}

std::unique_ptr<DecodeCall> DecodeClient::Open(const SequenceState& state, std::shared_ptr<FlowQueue> queue) {
  const uint64_t handle = next_handle_++;
  auto call = std::make_unique<Call>(this, handle, std::move(queue));
  if (const Status sick = health(); !sick.ok()) {
    calls_.erase(handle);
    call->Failed(sick);
    return call;
  }
  v1::SessionRequest request;
  request.mutable_open()->set_handle(handle);
  *request.mutable_open()->mutable_state() = ToProto(state);
  // gRPC would end the whole Session over it, and all requests there.
  if (request.ByteSizeLong() > kSessionMessageBytes) {
    calls_.erase(handle);
    call->Failed(TooLarge(request.ByteSizeLong(), kSessionMessageBytes));
    return call;
  }
  Send(std::move(request));
  return call;
}

DecodeClient::Call* DecodeClient::Find(uint64_t handle) {
  const auto at = calls_.find(handle);
  return at == calls_.end() ? nullptr : at->second;
}

void DecodeClient::Heard(const v1::Load& load) {
  const int64_t reserve_ahead = load_.reserve_ahead;
  load_ = LoadOf(load);
  load_.reserve_ahead = reserve_ahead;
  const Status serving = Annotate(ServingBy(load), "decode worker " + address_);
  if (StatusMessage(serving) == StatusMessage(serving_)) return;
  serving_ = serving;
  LogInfo(serving.ok() ? "decode worker " + address_ + " is ready" : StatusMessage(serving));
}

void DecodeClient::Dispatch(const v1::SessionResponse& response) {
  switch (response.message_case()) {
    case v1::SessionResponse::kHello:
      load_ = {};
      serving_ = Unavailable("connecting");
      if (response.hello().has_reserve_ahead_tokens())
        load_.reserve_ahead = std::max<int64_t>(0, response.hello().reserve_ahead_tokens());
      Heard(response.hello().load());
      if (response.hello().heartbeat_ms() > 0) {
        const std::chrono::milliseconds asked(response.hello().heartbeat_ms());
        session_->beat = std::min<Duration>(session_->beat, asked);
        session_->news.Set();
      }
      health_ = OkStatus();
      break;
    case v1::SessionResponse::kGranted:
      if (response.granted().has_load()) Heard(response.granted().load());
      if (Call* call = Find(response.granted().handle())) call->Granted(response.granted());
      break;
    case v1::SessionResponse::kFailed: {
      const v1::Failed& failed = response.failed();
      Call* call = Find(failed.handle());
      if (call == nullptr) break;
      calls_.erase(failed.handle());
      call->Failed(MakeStatus(static_cast<StatusCode>(failed.code()), failed.message()));
      break;
    }
    case v1::SessionResponse::kPreempted: {
      Call* call = Find(response.preempted().handle());
      if (call == nullptr) break;
      calls_.erase(response.preempted().handle());
      call->Preempted(response.preempted().next_index());
      break;
    }
    case v1::SessionResponse::kHeartbeat:  // of an older worker without a load
      if (response.heartbeat().has_load()) Heard(response.heartbeat().load());
      break;
    case v1::SessionResponse::kStep:
      DispatchStep(response.step());
      break;
    default:
      break;
  }
}

void DecodeClient::DispatchStep(const v1::StepBatch& batch) {
  static const std::string kNone;
  const int count = batch.handles_size();
  if (batch.indices_size() != count || batch.tokens_size() != count || batch.finish_size() != count ||
      (batch.logits_size() != 0 && batch.logits_size() != count) ||
      (batch.logprobs_size() != 0 && batch.logprobs_size() != count)) {
    session_->Break(Internal("it sent a malformed step batch: " + std::to_string(count) + " handles, " +
                             std::to_string(batch.indices_size()) + " indices, " +
                             std::to_string(batch.tokens_size()) + " tokens, " +
                             std::to_string(batch.finish_size()) + " finish reasons, " +
                             std::to_string(batch.logits_size()) + " rows of logits, " +
                             std::to_string(batch.logprobs_size()) + " log probabilities"));
    return;
  }
  Heard(batch.load());
  for (int i = 0; i < count; ++i) {
    Call* call = Find(batch.handles(i));
    if (call == nullptr) continue;
    StatusOr<std::optional<TokenLogprobs>> logprobs = std::optional<TokenLogprobs>();
    if (batch.logprobs_size() > 0) logprobs = cachalot::FromProto(batch.logprobs(i));
    if (!logprobs.ok()) return session_->Break(Internal("it sent " + StatusMessage(logprobs.status())));
    call->Token(batch.indices(i), batch.tokens(i), cachalot::FromProto(batch.finish(i)),
                batch.logits_size() ? batch.logits(i) : kNone, std::move(*logprobs));
  }
}

void DecodeClient::FailAll(const Status& status) {
  std::map<uint64_t, Call*> calls;
  calls.swap(calls_);
  for (auto& [handle, call] : calls) call->Failed(status);
}

}  // namespace cachalot
