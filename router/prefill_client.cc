#include "router/prefill_client.h"

#include <cstring>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/base/seconds_text.h"
#include "common/rpc/event.h"
#include "router/decode_client.h"

namespace cachalot {
namespace {

using Kind = FlowEvent::Kind;
constexpr int kPrefillMessageBytes = 16 << 20;
// Messages with rows of the prompt, and their bytes, that a client which reads slowly lets wait at the router. Then
// the worker waits. One message may go beyond it: 2 MiB.
constexpr int kMaxHeld = 16;
constexpr int64_t kMaxHeldBytes = 4 << 20;

}  // namespace

/// Shared by the coroutine and the Call that the flow holds.
struct PrefillClient::Running {
  explicit Running(rpc::Loop* loop) : over(loop), room(loop), watchers(loop) {}

  v1::PrefillRequest request;
  std::shared_ptr<FlowQueue> queue;
  rpc::CancelScope scope;
  rpc::Event over;
  rpc::Event room;         // a held message has been taken
  int held = 0;            // messages with rows that the flow has not taken
  int64_t held_bytes = 0;  // theirs
  bool reads_not = false;  // until there is room
  rpc::TaskGroup watchers;
  rpc::ClientReader<v1::PrefillEvent>* stream = nullptr;
  TimePoint last_heard;
  bool silent = false;
  bool taken = false;      // the worker has said something of it
  bool experts_away = false;
  bool abandoned = false;  // the flow does not want to hear of it any more

  static void Push(const std::shared_ptr<Running>& running, const v1::PrefillEvent& event) {
    running->Push(event, std::weak_ptr<Running>(running));
  }
  void Fail(Status status) {
    FlowEvent failed;
    failed.kind = Kind::kPrefillFailed;
    failed.error = std::move(status);
    failed.untaken = !taken && !silent;
    failed.experts_away = experts_away;
    Deliver(std::move(failed));
  }

 private:
  void Push(const v1::PrefillEvent& event, std::weak_ptr<Running> self) {
    FlowEvent news;
    if (event.has_first_token()) {
      news.kind = Kind::kFirstToken;
      news.index = request.state().emitted_size();
      news.token = event.first_token().token();
      news.finish = FromProto(event.first_token().finish());
      news.cached = event.first_token().cached_tokens();
      auto logprobs = FromProto(event.first_token().logprobs());
      if (!logprobs.ok()) return Fail(logprobs.status());
      if (*logprobs) news.logprobs.push_back(std::move(**logprobs));
    } else if (event.has_prompt_logprobs()) {
      news.kind = Kind::kPromptLogprobs;
      news.first_row = event.prompt_logprobs().first();
      for (const v1::TokenLogprobs& entry : event.prompt_logprobs().entries()) {
        auto logprobs = FromProto(entry);
        if (!logprobs.ok()) return Fail(logprobs.status());
        if (!*logprobs) return Fail(Internal("it sent prompt log probabilities without a value"));
        news.logprobs.push_back(std::move(**logprobs));
      }
    } else if (event.has_logits()) {
      news.kind = Kind::kPromptLogits;
      news.first_row = event.logits().first_row();
      const std::string& values = event.logits().values();
      news.logits.resize(values.size() / sizeof(float));
      if (!news.logits.empty())
        std::memcpy(news.logits.data(), values.data(), news.logits.size() * sizeof(float));
    } else if (event.has_committed()) {
      news.kind = Kind::kCommitted;
    } else {
      return;  // a sign of life
    }
    if (news.kind == Kind::kPromptLogits || news.kind == Kind::kPromptLogprobs) {
      const auto bytes = static_cast<int64_t>(event.ByteSizeLong());
      ++held;
      held_bytes += bytes;
      // The queue may outlive this, and this holds the queue.
      news.hold = std::shared_ptr<void>(nullptr, [self = std::move(self), bytes](void*) {
        const auto running = self.lock();
        if (!running) return;
        --running->held;
        running->held_bytes -= bytes;
        running->room.Set();
      });
    }
    Deliver(std::move(news));
  }
  void Deliver(FlowEvent event) {
    event.attempt = request.attempt();
    if (!abandoned) queue->Push(std::move(event));
  }
};

class PrefillClient::Call final : public PrefillCall {
 public:
  explicit Call(std::shared_ptr<Running> running) : running_(std::move(running)) {}
  ~Call() override {
    running_->abandoned = true;
    running_->room.Set();
    running_->scope.Cancel();
  }
  bool waits_for_reader() const override { return running_->reads_not; }

 private:
  std::shared_ptr<Running> running_;
};

PrefillClient::PrefillClient(rpc::Loop* loop, std::string address, ClusterView* cluster,
                             PrefillClientOptions options)
    : loop_(loop), address_(std::move(address)), cluster_(cluster), options_(options), look_(loop), calls_(loop) {
  NewChannel();
}

// As DecodeClient's.
void PrefillClient::NewChannel() {
  channel_ = rpc::CreateChannel(address_, {.max_message_bytes = kPrefillMessageBytes});
  stub_ = v1::Prefill::NewStub(channel_);
  describe_stub_ = v1::Cluster::NewStub(channel_);
}

rpc::Task<void> PrefillClient::Run() {
  while (!loop_->stopping() && !stopped_) {
    auto description = co_await rpc::UnaryCall(
        loop_, describe_stub_.get(), &v1::Cluster::Stub::PrepareAsyncDescribe, v1::DescribeRequest(),
        {.deadline = loop_->Now() + options_.describe_timeout});
    Status status = description.status();
    if (stopped_) break;
    if (status.ok()) status = CheckRole(v1::ROLE_PREFILL, description->role());
    if (status.ok()) status = Admit(*description);
    connection_ = status;
    if (status.ok()) status = ServingBy(description->load());
    if (status.ok() && !health_.ok()) LogInfo("prefill worker " + address_ + " is ready");
    const bool unfit = status.code() == StatusCode::kFailedPrecondition &&
                       StatusMessage(status) != StatusMessage(health_);
    if (unfit || (!status.ok() && health_.ok())) LogWarning("prefill worker " + address_ + ": " + StatusMessage(status));
    health_ = status;
    if (status.ok())
      load_ = LoadOf(description->load());
    if (status.code() == StatusCode::kDeadlineExceeded) NewChannel();
    // A worker that is away is looked at more often, so that it is used soon after it comes back; one that
    // failed a call at once, since it may only have passed on that the decode worker is away.
    const Duration pause = status.ok() ? options_.describe_interval : options_.describe_interval / 10;
    co_await look_.WaitFor(pause);
    look_.Reset();
  }
  health_ = connection_ = Unavailable("it has left");
  cluster_->Leave(this);
  co_await calls_.JoinAll();
}

Status PrefillClient::Admit(v1::Description& description) {
  RETURN_IF_ERROR(cluster_->Admit(this, description.compat(), "prefill worker " + address_, !left_));
  if (description_.epoch() != 0 && description_.epoch() != description.epoch())
    LogInfo("prefill worker " + address_ + " has restarted: epoch " + HexId(description.epoch()));
  description_ = description;
  return OkStatus();
}

void PrefillClient::Stop() {
  stopped_ = true;
  look_.Set();
}

void PrefillClient::Leave() {
  left_ = true;
  cluster_->Leave(this);
}

bool PrefillClient::Rejoin() {
  // One that is not healthy is described again before it is used.
  if (health_.ok() && !cluster_->Admit(this, description_.compat(), "prefill worker " + address_).ok()) return false;
  left_ = false;
  return true;
}

std::unique_ptr<PrefillCall> PrefillClient::Start(const SequenceState& state, DecodeCall& lease,
                                                  PrefillOptions options, std::shared_ptr<FlowQueue> queue) {
  auto& remote = dynamic_cast<RemoteLease&>(lease);
  auto running = std::make_shared<Running>(loop_);
  running->queue = std::move(queue);
  v1::PrefillRequest& request = running->request;
  *request.mutable_state() = ToProto(state);
  *request.mutable_lease() = remote.lease();
  request.set_attempt(options.attempt);
  request.set_decode_address(remote.address());
  request.set_max_chunk_tokens(static_cast<uint32_t>(options.max_chunk_tokens));
  if (cluster_->compat()) *request.mutable_compat() = *cluster_->compat();
  if (request.ByteSizeLong() > kPrefillMessageBytes) {
    running->Fail(TooLarge(request.ByteSizeLong(), kPrefillMessageBytes));
    return std::make_unique<Call>(std::move(running));
  }
  calls_.Spawn(RunCall(this, running), "prefill call");
  return std::make_unique<Call>(std::move(running));
}

rpc::Task<void> PrefillClient::RunCall(PrefillClient* client, std::shared_ptr<Running> running) {
  rpc::Loop* loop = client->loop_;
  rpc::ClientReader<v1::PrefillEvent> stream(loop, {.scope = &running->scope});
  running->stream = &stream;
  running->last_heard = loop->Now();
  running->watchers.Spawn(Watch(client, running.get()), "prefill watch");
  const bool started =
      co_await stream.Start(client->stub_.get(), &v1::Prefill::Stub::PrepareAsyncPrefill, running->request);
  bool first = false, committed = false, last = false;
  if (started) {
    v1::PrefillEvent event;
    while (co_await stream.Read(&event)) {
      running->last_heard = loop->Now();
      running->taken = true;
      running->experts_away |= event.has_experts_away();
      first |= event.has_first_token();
      committed |= event.has_committed();
      last |= event.first_token().finish() != v1::STEP_FINISH_NONE;
      Running::Push(running, event);
      co_await AwaitReader(loop, running.get());
    }
  }
  Status status = co_await stream.Finish();
  running->over.Set();
  running->stream = nullptr;
  if (running->silent)
    status = Unavailable("no sign of life for " + SecondsText(client->options_.silence_limit));
  if (status.ok() && !first) status = Unavailable("it ended the call without a first token");
  if (status.ok() && !committed && !last) status = Unavailable("it ended the call without a commit");
  if (!status.ok() && !running->abandoned) {
    status = Annotate(status, "prefill worker " + client->address_);
    // A dead worker is known here first: no other request should try it before it has answered again.
    if (status.code() == StatusCode::kUnavailable) {
      client->health_ = client->connection_ = status;
      client->look_.Set();
    }
    running->Fail(status);
  }
  co_await running->watchers.JoinAll();
}

/// Returns when the flow has taken enough of what it was given. The worker may be silent meanwhile: nobody
/// reads.
rpc::Task<void> PrefillClient::AwaitReader(rpc::Loop* loop, Running* running) {
  const auto full = [running] { return running->held >= kMaxHeld || running->held_bytes >= kMaxHeldBytes; };
  while (full() && !running->abandoned && !loop->draining()) {
    running->reads_not = true;
    running->room.Reset();
    co_await running->room.WaitUntil(TimePoint::max());
    running->last_heard = loop->Now();
    running->reads_not = false;
  }
}

rpc::Task<void> PrefillClient::Watch(PrefillClient* client, Running* running) {
  const Duration limit = client->options_.silence_limit;
  for (;;) {
    const TimePoint end = running->last_heard + limit;
    const bool over = co_await running->over.WaitUntil(end);
    if (over || client->loop_->draining()) co_return;
    if (running->reads_not) running->last_heard = client->loop_->Now();
    if (client->loop_->Now() - running->last_heard < limit) continue;
    running->silent = true;
    if (running->stream) running->stream->TryCancel();
    co_return;
  }
}

}  // namespace cachalot
