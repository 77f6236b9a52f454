#include "expert_service/expert_step.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "common/base/check.h"

namespace cachalot {

ExpertStep::ExpertStep(LayerTable layers, const ExpertCallLimits& limits, ExpertFfn ffn,
                       const ExpertStepOptions& options, const Clock* clock, ExpertStepObserver* observer)
    : layers_(std::move(layers)),
      limits_(limits),
      ffn_(std::move(ffn)),
      options_(options),
      clock_(clock),
      observer_(observer ? observer : &no_observer_) {}

void ExpertStep::Add(std::shared_ptr<FrameChannel> caller) {
  callers_.push_back({std::move(caller)});
  observer_->OnCallers(callers());
}

void ExpertStep::Remove(const FrameChannel* caller) {
  std::erase_if(line_, [&](const Call& call) { return call.channel.get() == caller; });
  std::erase_if(callers_, [&](const Caller& c) { return c.channel.get() == caller; });
  observer_->OnCallers(callers());
}

void ExpertStep::Collect() {
  std::vector<const FrameChannel*> gone;
  for (Caller& caller : callers_) {
    while (caller.waiting < options_.max_waiting_calls) {
      std::optional<Frame> frame = caller.channel->Poll();
      if (!frame) break;
      Take(caller, std::move(*frame));
    }
    if (!caller.channel->status().ok()) gone.push_back(caller.channel.get());
  }
  for (const FrameChannel* channel : gone) Remove(channel);
}

void ExpertStep::Take(Caller& caller, Frame frame) {
  const StatusOr<ExpertFrameView> view = ParseExpertFrame(frame.bytes);
  // Without a trustworthy header there is no call to answer: 0 tells the caller that a frame of its was
  // damaged.
  if (!view.ok()) return Refuse(*caller.channel, 0, 0, view.status());
  Call call{caller.channel, {}, view->header, {}, clock_->Now()};
  const Status decoded = DecodeExpertCall(*view, limits_, &call.view);
  if (!decoded.ok()) return Refuse(*caller.channel, view->header.call, view->header.layer, decoded);
  call.frame = std::move(frame);  // moves the bytes' owner, not the bytes: the view stays good
  caller.arrived = call.arrived;
  line_.push_back(std::move(call));
  ++caller.waiting;
}

void ExpertStep::Refuse(FrameChannel& channel, uint64_t call, uint32_t layer, const Status& error) {
  observer_->OnError(error);
  const TimePoint deadline = clock_->Now() + options_.reply_timeout;
  // If this cannot be sent the channel has broken, and Collect will see that.
  (void)channel.Post({EncodeExpertError(call, layer, error)}, deadline);
}

std::optional<TimePoint> ExpertStep::Due() const {
  if (line_.empty()) return std::nullopt;
  const TimePoint oldest = line_.front().arrived;
  const bool all_here = std::ranges::all_of(callers_, [&](const Caller& c) {
    return c.waiting > 0 || !c.arrived || oldest - *c.arrived > options_.busy;
  });
  return all_here ? oldest : oldest + options_.batch_wait;
}

std::vector<ExpertStep::Call> ExpertStep::TakeBatch() {
  std::vector<Call> batch;
  const uint32_t layer = line_.front().header.layer;
  int64_t rows = 0;
  for (auto at = line_.begin(); at != line_.end();) {
    const bool fits = batch.empty() || rows + at->header.rows <= options_.max_batch_rows;
    if (at->header.layer != layer || !fits) {
      ++at;
      continue;
    }
    rows += at->header.rows;
    const auto caller = std::find_if(callers_.begin(), callers_.end(),
                                     [&](const Caller& c) { return c.channel == at->channel; });
    CHECK(caller != callers_.end());
    --caller->waiting;
    batch.push_back(std::move(*at));
    at = line_.erase(at);
  }
  return batch;
}

bool ExpertStep::RunBatch() {
  if (line_.empty()) return false;
  std::vector<Call> batch = TakeBatch();
  int64_t rows = 0;
  for (const Call& call : batch) rows += call.header.rows;
  observer_->OnBatch(static_cast<int64_t>(batch.size()), rows);
  const bool in_place = batch.size() == 1 && limits_.wire_type == ExpertWireType::kF32;
  in_place ? RunAlone(batch[0]) : RunTogether(batch, rows);
  return true;
}

// Straight from the call's frame into the reply's.
void ExpertStep::RunAlone(Call& call) {
  std::vector<std::byte> reply = MakeExpertReply(call.header);
  ffn_.Run(layers_(static_cast<int>(call.header.layer)), call.view.assignments, call.view.x, limits_.hidden,
           ReplyPartials(reply), call.header.slots);
  Reply(call, std::move(reply));
}

void ExpertStep::RunTogether(std::vector<Call>& calls, int64_t rows) {
  assignments_.clear();
  x_.resize(std::max<size_t>(x_.size(), rows * limits_.hidden));
  int32_t first_row = 0, first_slot = 0;
  for (const Call& call : calls) {
    for (const ExpertAssignment& a : call.view.assignments)
      assignments_.push_back({a.row + first_row, a.slot + first_slot, a.expert, a.weight});
    std::memcpy(x_.data() + first_row * limits_.hidden, call.view.x,
                call.header.rows * limits_.hidden * sizeof(float));
    first_row += static_cast<int32_t>(call.header.rows);
    first_slot += static_cast<int32_t>(call.header.slots);
  }
  std::sort(assignments_.begin(), assignments_.end(), [](const auto& a, const auto& b) {
    return std::tie(a.expert, a.row) < std::tie(b.expert, b.row);
  });
  partials_.resize(std::max<size_t>(partials_.size(), first_slot * limits_.hidden));
  ffn_.Run(layers_(static_cast<int>(calls[0].header.layer)), assignments_, x_.data(), limits_.hidden,
           partials_.data(), first_slot);
  const float* from = partials_.data();
  for (Call& call : calls) {
    std::vector<std::byte> reply = MakeExpertReply(call.header);
    const int64_t count = call.header.slots * limits_.hidden;
    SetReplyPartials(reply, from);
    from += count;
    Reply(call, std::move(reply));
  }
}

void ExpertStep::Reply(Call& call, std::vector<std::byte> reply) {
  SealExpertReply(reply);
  const TimePoint now = clock_->Now();
  const Status posted = call.channel->Post({std::move(reply)}, now + options_.reply_timeout);
  if (posted.ok()) {
    observer_->OnReply(now - call.arrived);
  } else if (posted.code() == StatusCode::kInvalidArgument) {  // too large for the channel
    Refuse(*call.channel, call.header.call, call.header.layer, posted);
  } else {
    observer_->OnError(posted);
  }
}

}  // namespace cachalot
