#include "common/rpc/client.h"

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace cachalot::rpc {

std::shared_ptr<grpc::Channel> CreateChannel(const std::string& target, const ChannelOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  arguments.SetMaxSendMessageSize(options.max_message_bytes);
  // A retry inside gRPC would repeat requests that only their owner may repeat, and read shared slices late.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  // Loops must not share a connection: they would share its lock.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, options.initial_backoff_ms);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, options.max_backoff_ms);
  // In 1.51 this is the time-out of one attempt; its default of 20 s would keep a peer that moved away for
  // that long.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, options.connect_timeout_ms);
  // A restarted pod has a new address: the default of 30 s between look-ups is too slow for that.
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, options.max_backoff_ms);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

void Connect(grpc::Channel* channel) { channel->GetState(/*try_to_connect=*/true); }

Task<Status> WaitConnected(Loop* loop, std::shared_ptr<grpc::Channel> channel, std::string target,
                           TimePoint deadline) {
  // In short rounds, since a pending state watch cannot be cancelled when the loop ends.
  constexpr Duration kRound = std::chrono::milliseconds(100);
  for (;;) {
    const grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) co_return OkStatus();
    if (loop->stopping()) co_return Cancelled("no connection to " + target + " yet and the loop ends");
    const TimePoint now = loop->Now();
    if (now >= deadline) co_return DeadlineExceeded("no connection to " + target + " in time");
    const gpr_timespec until = ToGprTime(std::min(deadline, now + kRound));
    CqOperation change([&](void* tag) { channel->NotifyOnStateChange(state, until, loop->queue(), tag); });
    co_await change;
  }
}

ClientCall::ClientCall(Loop* loop, const CallOptions& options) : loop_(loop) {
  if (options.deadline != TimePoint::max()) context_.set_deadline(ToGprTime(options.deadline));
  context_.set_wait_for_ready(options.wait_for_ready);
  for (const auto& [key, value] : options.metadata) context_.AddMetadata(key, value);
  loop_hook_.Attach(&loop->scope());
  if (options.scope != nullptr) scope_hook_.Attach(options.scope);
}

}  // namespace cachalot::rpc
