#include "common/moe/remote_experts.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/base/seconds_text.h"

namespace cachalot {
namespace {

// A channel may hold frames back without telling Progress (a fault proxy does), so waits come in rounds.
constexpr Duration kRound = std::chrono::milliseconds(50);

}  // namespace

RemoteExperts::RemoteExperts(ShardMap map, std::unique_ptr<ChannelFactory> factory,
                             std::shared_ptr<Progress> progress, const Clock* clock,
                             const RemoteExpertsOptions& options)
    : map_(std::move(map)),
      factory_(std::move(factory)),
      progress_(std::move(progress)),
      clock_(clock),
      options_(options),
      shards_(map_.shards()) {}

Status RemoteExperts::Broken(int shard, const Status& why) {
  return Unavailable("expert " + map_.Name(shard) + ": " + StatusMessage(why));
}

Status RemoteExperts::OurFault(int shard, const Status& refusal) const {
  const std::string who = "expert " + map_.Name(shard);
  if (refusal.code() == StatusCode::kInvalidArgument) return Internal(who + ": " + StatusMessage(refusal));
  return Annotate(refusal, who);
}

Status RemoteExperts::EnsureChannel(int shard, TimePoint deadline) {
  std::unique_ptr<FrameChannel>& channel = shards_[shard].channel;
  if (channel && channel->status().ok()) return OkStatus();
  channel.reset();
  StatusOr<std::unique_ptr<FrameChannel>> made = factory_->Connect(shard, deadline);
  if (!made.ok()) {
    // Whatever kept us from reaching it, the shard is away; but a service that must not be used says so for
    // good.
    if (made.status().code() == StatusCode::kFailedPrecondition)
      return Annotate(made.status(), "expert " + map_.Name(shard));
    return Broken(shard, made.status());
  }
  channel = std::move(*made);
  if (const ShardInfo* current = factory_->Current(shard)) map_.Replace(shard, *current);
  ++stats_.connects;
  return OkStatus();
}

Status RemoteExperts::ConnectAll(TimePoint deadline) {
  for (int s = 0; s < map_.shards(); ++s) RETURN_IF_ERROR(EnsureChannel(s, deadline));
  return OkStatus();
}

Status RemoteExperts::Begin(const ExpertCall& call) {
  GiveUp();
  call_ = call;
  ++call_id_;
  progress_->WaitUntil(TimePoint::min());  // shows channels that broke since the last call
  plans_ = &splitter_.Split(*call.plan, map_.groups(), map_.shards());
  RETURN_IF_ERROR(EnsureNeeded());
  begun_ = clock_->Now();
  for (int s = 0; s < map_.shards(); ++s) {
    const ShardPlan& plan = (*plans_)[s];
    if (plan.empty()) continue;
    if (Status posted = PostCall(s, plan); !posted.ok()) {
      GiveUp();
      return posted;
    }
  }
  return OkStatus();
}

Status RemoteExperts::EnsureNeeded() {
  Status first = OkStatus();
  for (int s = 0; s < map_.shards(); ++s) {
    if ((*plans_)[s].empty()) continue;
    // The call has failed with the first that cannot be reached, but the others come back no sooner than they
    // are looked for. Their attempts go on in the next calls, so there is nothing to wait for.
    const Duration wait = first.ok() ? options_.reconnect_wait : Duration::zero();
    Status made = EnsureChannel(s, clock_->Now() + wait);
    if (first.ok()) first = std::move(made);
  }
  return first;
}

Status RemoteExperts::PostCall(int shard, const ShardPlan& plan) {
  Frame frame{EncodeExpertCall(call_id_, call_.layer, plan.assignments, plan.rows,
                               static_cast<int64_t>(plan.slots.size()), call_.x, call_.hidden,
                               call_.bf16 ? ExpertWireType::kBf16 : ExpertWireType::kF32)};
  Shard& to = shards_[shard];
  const Status posted = to.channel->Post(std::move(frame), begun_ + options_.call_timeout);
  if (posted.code() == StatusCode::kInvalidArgument) return OurFault(shard, posted);
  if (!posted.ok()) {
    to.channel.reset();
    return Broken(shard, posted);
  }
  to.waiting = true;
  ++stats_.calls;
  return OkStatus();
}

Status RemoteExperts::Wait() {
  const TimePoint deadline = begun_ + options_.call_timeout;
  for (;;) {
    bool waiting = false;
    for (int s = 0; s < map_.shards(); ++s) {
      if (!shards_[s].waiting) continue;
      if (Status received = Receive(s); !received.ok()) {
        GiveUp();
        return received;
      }
      waiting |= shards_[s].waiting;
    }
    if (!waiting) return OkStatus();
    const TimePoint now = clock_->Now();
    if (now >= deadline) return TimedOut();
    if (Status alive = CheckAlive(now); !alive.ok()) {
      GiveUp();
      return alive;
    }
    progress_->WaitUntil(std::min(deadline, now + kRound));
  }
}

Status RemoteExperts::Receive(int shard) {
  Shard& from = shards_[shard];
  while (from.waiting) {
    const Status status = from.channel->status();  // before Poll: a broken channel may still hold the reply
    const std::optional<Frame> frame = from.channel->Poll();
    if (!frame) {
      if (status.ok()) return OkStatus();
      from.channel.reset();
      return Broken(shard, status);
    }
    RETURN_IF_ERROR(Accept(shard, *frame));
  }
  return OkStatus();
}

Status RemoteExperts::Accept(int shard, const Frame& frame) {
  Shard& from = shards_[shard];
  StatusOr<ExpertFrameView> view = ParseExpertFrame(frame.bytes);
  Status status = view.status();
  if (status.ok()) {
    const bool error = view->header.kind == ExpertFrameKind::kError;
    // An error without a call is about a frame that did not arrive whole; ours is the only one under way.
    if (view->header.call != call_id_ && !(error && view->header.call == 0)) {
      ++stats_.stale_replies;
      return OkStatus();
    }
    if (!error) {
      status = AcceptReply(shard, *view);
      if (status.ok()) return OkStatus();
    } else {
      status = DecodeExpertError(*view);
      if (status.code() != StatusCode::kDataLoss) return OurFault(shard, status);
    }
  }
  from.channel.reset();  // the frames around a damaged one are not to be trusted either
  return Broken(shard, status);
}

Status RemoteExperts::AcceptReply(int shard, const ExpertFrameView& frame) {
  const ShardPlan& plan = (*plans_)[shard];
  const ExpertFrameHeader& h = frame.header;
  if (h.kind != ExpertFrameKind::kReply || h.layer != static_cast<uint32_t>(call_.layer) ||
      h.slots != plan.slots.size() || h.hidden != call_.hidden)
    return DataLoss("a reply to another call than ours: layer " + std::to_string(h.layer) + ", " +
                    std::to_string(h.slots) + " slots of " + std::to_string(h.hidden) + ", wanted layer " +
                    std::to_string(call_.layer) + ", " + std::to_string(plan.slots.size()) + " of " +
                    std::to_string(call_.hidden));
  if (h.wire_type != (call_.bf16 ? ExpertWireType::kBf16 : ExpertWireType::kF32))
    return DataLoss("a reply of another wire type than the call");
  for (size_t i = 0; i < plan.slots.size(); ++i)
    ReadReplySlot(frame, static_cast<int64_t>(i), call_.partials + plan.slots[i] * call_.hidden);
  shards_[shard].waiting = false;
  return OkStatus();
}

Status RemoteExperts::TimedOut() {
  std::string silent;
  for (int s = 0; s < map_.shards(); ++s) {
    if (!shards_[s].waiting) continue;
    silent += (silent.empty() ? "" : ", ") + map_.Name(s);
    // As if dead: the next Begin asks whether it lives instead of waiting as long again.
    shards_[s].channel.reset();
  }
  const double waited = Seconds(clock_->Now() - begun_);
  GiveUp();
  return DeadlineExceeded("experts of layer " + std::to_string(call_.layer) + ": no answer for " +
                          std::to_string(waited) + " s from " + silent);
}

Status RemoteExperts::CheckAlive(TimePoint now) {
  if (now - begun_ < options_.ask_after) return OkStatus();
  for (int s = 0; s < map_.shards(); ++s) {
    if (!shards_[s].waiting) continue;
    const TimePoint heard = std::max(begun_, factory_->Heard(s, /*ask=*/false));
    if (now - heard >= options_.silence_limit) {
      shards_[s].channel.reset();
      factory_->Silent(s);
      return Broken(s, Unavailable("no sign of life for " + SecondsText(now - heard)));
    }
    if (now - heard >= options_.ask_after) factory_->Heard(s, /*ask=*/true);
  }
  return OkStatus();
}

void RemoteExperts::GiveUp() {
  for (Shard& shard : shards_) shard.waiting = false;
}

}  // namespace cachalot
