#include "expert_service/dispatch_service.h"

#include <algorithm>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/moe/expert_method.h"

namespace cachalot {
namespace {

constexpr Duration kIdleTurn = std::chrono::milliseconds(250);
// gRPC sleeps whole milliseconds: shorter waits for a batch are polled away.
constexpr Duration kShortestSleep = std::chrono::milliseconds(1);

int64_t SinceEpoch(TimePoint time) { return Duration(time.time_since_epoch()).count(); }

}  // namespace

DispatchService::DispatchService(rpc::Server* server, rpc::Loop* control, rpc::Loop* step_loop,
                                 ExpertStep* step, v1::Description description)
    : step_loop_(step_loop),
      step_(step),
      description_(std::move(description)),
      epoch_(HexId(description_.epoch())),
      last_turn_(SinceEpoch(control->Now())) {
  server->Bidi(
      step_loop, &expert_, &v1::Expert::WithRawMethod_Dispatch<v1::Expert::Service>::RequestDispatch,
      [this](rpc::ServerCall& call, rpc::RawServerStream& stream) { return Dispatch(call, stream); });
  server->Unary(control, &cluster_, &v1::Cluster::AsyncService::RequestDescribe,
                [this](rpc::ServerCall& call, const v1::DescribeRequest& request, v1::Description* response) {
                  return Describe(call, request, response);
                });
}

rpc::Task<Status> DispatchService::Describe(rpc::ServerCall&, const v1::DescribeRequest&,
                                            v1::Description* response) {
  *response = description_;
  response->mutable_load()->set_running_sequences(
      callers_.load(std::memory_order_relaxed));  // connected callers
  co_return OkStatus();
}

rpc::Task<Status> DispatchService::Dispatch(rpc::ServerCall& call, rpc::RawServerStream& stream) {
  const std::string peer = call.peer();
  if (draining_.load()) co_return Unavailable("the expert service is shutting down");
  const std::string epoch = call.Metadata(kExpertEpochKey).value_or(epoch_);
  if (epoch != epoch_)
    co_return FailedPrecondition("this expert service's epoch is " + epoch_ + ", the caller expected " +
                                 epoch + ": describe it again");
  auto channel = std::make_shared<GrpcServerChannel>(&call, &stream, GrpcChannelOptions{.peer = peer});
  LogDebug("caller " + peer + " connected");
  channels_.insert(channel.get());
  step_->Add(channel);
  callers_.store(step_->callers());
  auto serving = channel->Serve();
  Status status = co_await std::move(serving);
  step_->Remove(channel.get());
  channels_.erase(channel.get());
  callers_.store(step_->callers());
  LogDebug("caller " + peer + " disconnected");
  co_return status;
}

TimePoint DispatchService::Turn() {
  step_->Collect();
  const TimePoint now = step_loop_->Now();  // behind Collect: what has just arrived may be due
  last_turn_.store(SinceEpoch(now), std::memory_order_relaxed);
  const std::optional<TimePoint> due = step_->Due();
  if (!due) return now + kIdleTurn;
  if (*due > now && !draining_.load(std::memory_order_relaxed)) return *due;
  step_->RunBatch();
  return TimePoint::min();  // more may have come meanwhile
}

void DispatchService::RunStepThread() {
  bool closed = false;
  for (;;) {
    TimePoint wait = Turn();
    const bool draining = draining_.load() && !closed;
    if (draining || wait < step_loop_->Now() + kShortestSleep) wait = TimePoint::min();
    const rpc::Loop::Poll polled = step_loop_->PollOnce(wait);
    if (polled == rpc::Loop::Poll::kStopped) return;
    // Nothing has arrived and nothing is in line: everybody has got an answer.
    if (draining && polled == rpc::Loop::Poll::kTimeout && !step_->Due()) {
      for (GrpcServerChannel* channel : channels_)
        channel->Close(Unavailable("the expert service is shutting down"));
      closed = true;
    }
  }
}

void DispatchService::Drain() {
  // The wake-up makes the step thread look at once rather than at its next idle turn.
  step_loop_->Post([this] { draining_.store(true); });
}

}  // namespace cachalot
