#include "decode_worker/session_service.h"

#include <algorithm>
#include <functional>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/base/seconds_text.h"
#include "common/cluster/compat.h"
#include "common/rpc/event.h"
#include "common/rpc/write_queue.h"

namespace cachalot {
namespace {

std::string Tag(const std::string& request_id) { return "[" + request_id + "] "; }

}  // namespace

struct SessionService::Session {
  Session(rpc::ServerCall* call_, Stream* stream_, uint64_t id_, size_t queue_limit)
      : id(id_),
        name("router at " + call_->peer()),
        call(call_),
        stream(stream_),
        queue(call_->loop(), stream_, queue_limit),
        ended(call_->loop()),
        sent(call_->loop()->Now()) {}

  const uint64_t id;
  const std::string name;
  rpc::ServerCall* call;
  Stream* stream;
  rpc::WriteQueue<Stream> queue;
  rpc::Event ended;
  Status end;          // why, once it has ended
  bool flush = false;  // when ended: send what is queued first
  bool greeted = false;
  bool takes_preemption = false;
  TimePoint sent;         // the last message to the router
  int64_t told_free = 0;  // KV tokens, by the last load it was sent
};

SessionService::SessionService(rpc::Server* server, rpc::Loop* loop, LeaseTable& leases, BlockPools& pools,
                               StepLoop& step, const ModelConfig& config, const v1::Compat& compat,
                               DecodeMetrics& metrics, SessionOptions options)
    : loop_(loop),
      leases_(leases),
      pools_(pools),
      step_(step),
      config_(config),
      compat_(compat),
      metrics_(metrics),
      options_(options) {
  server->Bidi(loop, &service_, &decltype(service_)::RequestSession,
               std::bind_front(&SessionService::Serve, this));
}

SessionService::~SessionService() = default;

// ---- one stream's life

rpc::Task<Status> SessionService::Serve(rpc::ServerCall& call, Stream& stream) {
  if (!over_.ok()) co_return over_;
  auto session = std::make_shared<Session>(&call, &stream, leases_.OpenSession(), options_.queue_limit);
  sessions_[session->id] = session;
  metrics_.sessions.Set(static_cast<double>(sessions_.size()));
  call.tasks().Spawn(Read(session), "session reader");
  if (!co_await session->ended.WaitUntil(TimePoint::max()))
    End(*session, Unavailable("the decode worker stops"));
  leases_.BreakSession(session->id);
  claims_.Forget(session->id);
  sessions_.erase(session->id);
  ++flushing_;
  metrics_.sessions.Set(static_cast<double>(sessions_.size()));
  LogInfo(session->name + ": Session over" + (session->end.ok() ? "" : ": " + StatusMessage(session->end)));
  if (!session->flush) session->queue.Close();
  // A router that does not read holds the write in flight, and with it the call.
  const bool flushed = co_await session->queue.Flush(loop_->Now() + options_.last_words);
  if (!flushed) call.TryCancel();
  // At the loop's end waits return early, but the write in flight then ends too: its call is cancelled.
  while (!co_await session->queue.Flush(TimePoint::max())) co_await rpc::Yield(loop_);
  --flushing_;
  co_return session->end;
}

rpc::Task<void> SessionService::Read(std::shared_ptr<Session> session) {
  v1::SessionRequest request;
  // Not `while (ok && co_await ...)`: GCC 12 awaited the right side here whatever the left side said.
  while (co_await session->stream->Read(&request)) {
    if (session->ended.is_set()) co_return;
    leases_.Renew(session->id);
    const Status status = Handle(*session, request);
    if (status.ok()) continue;
    End(*session, status);
    co_return;
  }
  End(*session, OkStatus());
}

void SessionService::End(Session& session, const Status& status) {
  if (session.ended.is_set()) return;
  session.end = status;
  session.ended.Set();
}

void SessionService::EndAll(const Status& status) {
  over_ = status;
  for (auto& [id, session] : sessions_) {
    session->flush = true;
    End(*session, status);
  }
}

void SessionService::Tick() {
  const TimePoint now = loop_->Now();
  LeaseTable::Expired expired = leases_.Expire();
  for (uint64_t id : expired.silent) {
    const auto found = sessions_.find(id);
    if (found == sessions_.end()) continue;
    End(*found->second, DeadlineExceeded("nothing heard from the router for " +
                                         SecondsText(leases_.options().heartbeat_timeout)));
    found->second->call->TryCancel();  // a router that hangs reads no status either
  }
  std::vector<uint64_t> running;
  for (const auto& lease : expired.leases) {
    LogWarning(Tag(lease->request_id) + "freed: its Session has been gone for the grace");
    if (lease->phase == LeasePhase::kRunning) running.push_back(lease->id);
    metrics_.expired.Add();
  }
  if (!running.empty()) step_.Remove(std::move(running));
  const int64_t free = CurrentLoad().free_kv_tokens();
  for (auto& [id, session] : sessions_) {
    if (!session->greeted || (now - session->sent < options_.heartbeat && free == session->told_free))
      continue;
    v1::SessionResponse response;
    Tell(*session, response.mutable_heartbeat()->mutable_load());
    Send(*session, std::move(response));
  }
  metrics_.kv_blocks_used.Set(static_cast<double>(pools_.used_blocks()));
  metrics_.leases.Set(static_cast<double>(leases_.size()));
}

// ---- what routers say

Status SessionService::Handle(Session& session, const v1::SessionRequest& request) {
  using Message = v1::SessionRequest;
  if (request.message_case() == Message::kHello) return Greet(session, request.hello());
  if (!session.greeted) return InvalidArgument("the first message of a Session must be Hello");
  switch (request.message_case()) {
    case Message::kOpen:
      return Open(session, request.open());
    case Message::kAcknowledge:
      return Acknowledge(session, request.acknowledge());
    case Message::kClose:
      Close(session, request.close().handle());
      return OkStatus();
    default:  // Heartbeat, or what a newer router says: it has renewed the Session already
      return OkStatus();
  }
}

Status SessionService::Greet(Session& session, const v1::Hello& hello) {
  if (session.greeted) return InvalidArgument("a second Hello in one Session");
  RETURN_IF_ERROR(CheckCompat(compat_, hello.compat(), session.name));
  session.greeted = true;
  session.takes_preemption = hello.takes_preemption();
  LogInfo(session.name + ": Session open, router epoch " + HexId(hello.router_epoch()));
  v1::SessionResponse response;
  v1::HelloReply& reply = *response.mutable_hello();
  *reply.mutable_compat() = compat_;
  reply.set_epoch(leases_.epoch());
  reply.set_heartbeat_ms(static_cast<uint32_t>(options_.heartbeat / std::chrono::milliseconds(1)));
  if (session.takes_preemption) reply.set_reserve_ahead_tokens(options_.reserve_ahead);
  Tell(session, reply.mutable_load());
  Send(session, std::move(response));
  return OkStatus();
}

Status SessionService::Open(Session& session, const v1::Open& open) {
  if (leases_.FindHandle(session.id, open.handle()))
    return InvalidArgument("handle " + std::to_string(open.handle()) + " opened twice in one Session");
  metrics_.requests.Add();
  const auto lease = Grant(session, open);
  if (!lease.ok()) {
    metrics_.refused.Add();
    LogInfo(Tag(open.state().request_id()) + "refused: " + StatusMessage(lease.status()));
    Fail(session, open.handle(), lease.status());
    return OkStatus();
  }
  LogDebug(Tag((*lease)->request_id) + "lease " + HexId((*lease)->id) + " of " +
           std::to_string((*lease)->kv.capacity()) + " tokens");
  v1::SessionResponse response;
  v1::Granted& granted = *response.mutable_granted();
  granted.set_handle(open.handle());
  Tell(session, granted.mutable_load());
  granted.mutable_lease()->set_id((*lease)->id);
  granted.mutable_lease()->set_epoch(leases_.epoch());
  granted.set_ttl_ms(static_cast<uint32_t>(leases_.options().session_grace / std::chrono::milliseconds(1)));
  Send(session, std::move(response));
  return OkStatus();
}

StatusOr<Lease*> SessionService::Grant(Session& session, const v1::Open& open) {
  if (!refusing_.empty()) return Unavailable(refusing_);
  ASSIGN_OR_RETURN(SequenceState state, FromProto(open.state(), config_.vocab_size));
  if (!options_.debug_logits && (state.want_logits || !state.forced.empty()))
    return FailedPrecondition("forced tokens and logits need a decode worker that runs with --debug-logits");
  if (state.MaxTokens() > config_.max_position_embeddings)
    return OutOfRange("a prompt of " + std::to_string(state.prompt.size()) + " and max_tokens of " +
                      std::to_string(state.params.max_tokens) + " exceed the context of " +
                      std::to_string(config_.max_position_embeddings));
  // Debugging runs are not resumed, and neither is anything by a router that does not know how.
  const bool preemptible = session.takes_preemption && !state.want_logits;
  RETURN_IF_ERROR(CheckHolds(pools_, state));
  RETURN_IF_ERROR(OthersFirst(session, state));
  ASSIGN_OR_RETURN(SequenceKv kv, ReserveFor(state, preemptible));
  ASSIGN_OR_RETURN(Lease * lease, leases_.Grant(session.id, open.handle(), std::move(state), std::move(kv)));
  lease->preemptible = preemptible;
  claims_.Granted(session.id, lease->request_id);
  return lease;
}

/// What it took from one router's requests is not for another's new ones.
Status SessionService::OthersFirst(const Session& session, const SequenceState& state) {
  const TimePoint now = leases_.Now();
  const size_t others = claims_.Before(session.id, state.emitted.empty(), now);
  if (others == 0) return OkStatus();
  claims_.Refused(now);
  return ResourceExhausted(std::to_string(others) +
                           " preempted requests of other routers wait for KV of this decode worker; retry later");
}

/// What a sequence gets at first: all that it may ever need if it cannot be preempted.
StatusOr<SequenceKv> SessionService::ReserveFor(const SequenceState& state, bool preemptible) {
  const int64_t all = state.MaxTokens();
  const int64_t first = preemptible ? FirstKvTokens(state.ContextTokens(), all, options_.reserve_ahead) : all;
  StatusOr<SequenceKv> kv = pools_.Reserve(first, all);
  // Refused all the same: it asks again, or the next one does.
  if (kv.status().code() == StatusCode::kResourceExhausted) {
    claims_.Refused(leases_.Now());
    step_.Reclaim(first);
  }
  return kv;
}

Status SessionService::Acknowledge(Session& session, const v1::Acknowledge& acknowledge) {
  if (acknowledge.handles_size() != acknowledge.next_index_size())
    return InvalidArgument("Acknowledge of " + std::to_string(acknowledge.handles_size()) + " handles with " +
                           std::to_string(acknowledge.next_index_size()) + " indices");
  std::vector<std::pair<uint64_t, int64_t>> next_indices;
  for (int i = 0; i < acknowledge.handles_size(); ++i) {
    const Lease* lease = leases_.FindHandle(session.id, acknowledge.handles(i));
    if (lease && lease->phase == LeasePhase::kRunning)
      next_indices.emplace_back(lease->id, acknowledge.next_index(i));
  }
  if (!next_indices.empty()) step_.Acknowledge(std::move(next_indices));
  return OkStatus();
}

void SessionService::Close(Session& session, uint64_t handle) {
  const Lease* found = leases_.FindHandle(session.id, handle);
  if (!found) return;  // it has ended meanwhile
  const auto lease = leases_.Release(found->id);
  LogDebug(Tag(lease->request_id) + "closed by its router");
  if (lease->phase == LeasePhase::kRunning) step_.Remove({lease->id});
}

// ---- what routers hear

void SessionService::Deliver(std::vector<TokenOut> tokens) {
  std::map<uint64_t, StepBatches> batches;  // by Session
  std::vector<std::unique_ptr<Lease>> over;
  std::vector<std::pair<const Lease*, Status>> failed;
  size_t sent = 0;
  for (TokenOut& token : tokens) {
    const Lease* lease = leases_.Find(token.id);
    if (!lease) continue;  // closed while the step ran
    if (token.preempted) {
      // All of its tokens went out with the steps before.
      const auto preempted = leases_.Release(token.id);
      if (!token.reader_lags && sessions_.contains(preempted->session))
        claims_.Preempted(preempted->session, preempted->request_id, leases_.Now());
      Preempt(*preempted, token.index);
      continue;
    }
    if (token.error.ok()) {
      ++sent;
      batches.try_emplace(lease->session, options_.step_batch_bytes)
          .first->second.Add(lease->handle, token, options_.debug_logits);
    } else {
      failed.emplace_back(lease, token.error);
    }
    if (!token.error.ok() || token.finish != FinishReason::kNone) over.push_back(leases_.Release(token.id));
  }
  metrics_.tokens.Add(static_cast<double>(sent));
  for (auto& [id, step] : batches) {
    const auto session = sessions_.find(id);
    if (session == sessions_.end()) continue;  // broken: nobody hears the tokens of its grace
    for (v1::StepBatch& batch : step.Take()) {
      v1::SessionResponse response;
      *response.mutable_step() = std::move(batch);
      Tell(*session->second, response.mutable_step()->mutable_load());
      Send(*session->second, std::move(response));
    }
  }
  for (const auto& [lease, status] : failed) {
    metrics_.failed.Add();
    LogWarning(Tag(lease->request_id) + "failed: " + StatusMessage(status));
    const auto session = sessions_.find(lease->session);
    if (session != sessions_.end()) Fail(*session->second, lease->handle, status);
  }
}

void SessionService::Fail(Session& session, uint64_t handle, const Status& status) {
  v1::SessionResponse response;
  v1::Failed& failed = *response.mutable_failed();
  failed.set_handle(handle);
  failed.set_code(static_cast<int32_t>(status.code()));
  failed.set_message(StatusMessage(status));
  Send(session, std::move(response));
}

void SessionService::Preempt(const Lease& lease, int64_t next_index) {
  metrics_.preempted.Add();
  LogInfo(Tag(lease.request_id) + "preempted before output token " + std::to_string(next_index) +
          ": others need its KV");
  const auto session = sessions_.find(lease.session);
  if (session == sessions_.end()) return;
  v1::SessionResponse response;
  response.mutable_preempted()->set_handle(lease.handle);
  response.mutable_preempted()->set_next_index(next_index);
  Send(*session->second, std::move(response));
}

void SessionService::Send(Session& session, v1::SessionResponse response) {
  using Pushed = rpc::WriteQueue<Stream>::Pushed;
  session.sent = loop_->Now();
  const Pushed pushed = session.queue.Push(std::move(response));
  if (pushed != Pushed::kFull) return;  // kClosed: the reader sees the end of the stream too
  End(session, ResourceExhausted("the router reads too slowly: " + std::to_string(options_.queue_limit) +
                                 " messages wait for it"));
  session.call->TryCancel();
}

void SessionService::Tell(Session& session, v1::Load* load) {
  *load = CurrentLoad();
  session.told_free = load->free_kv_tokens();
}

v1::Load SessionService::CurrentLoad() const {
  v1::Load load;
  load.set_running_sequences(step_.running());
  load.set_free_kv_tokens(pools_.free_tokens());
  load.set_used_kv_blocks(pools_.used_blocks());
  load.set_leases(static_cast<int64_t>(leases_.size()));
  load.set_kv_wanted(step_.starved() || claims_.wanted(leases_.Now()));
  load.set_not_serving(refusing_);
  if (!refusing_.empty()) {  // what becomes free is nobody's: a preempted sequence goes elsewhere or waits
    load.set_free_kv_tokens(0);
    load.set_leases(std::max<int64_t>(load.leases(), 1));
  }
  return load;
}

}  // namespace cachalot
