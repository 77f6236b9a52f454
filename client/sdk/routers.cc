#include "client/sdk/routers.h"

#include <algorithm>

namespace cachalot::client {
namespace {

constexpr int kMaxMessageBytes = 16 << 20;
constexpr int kConnectMs = 1000;  // one attempt; gRPC's default of 20 s would hold up the next router

// A router that hangs or whose host has vanished breaks no connection: pings find out, only while calls are open.
constexpr int kPingMs = 4000, kPingTimeoutMs = 3000;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectMs);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kConnectMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // no limit: a stream has data in one direction only
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// As in common/rpc/error_map.h, of which a client knows nothing.
constexpr char kChosenByRouter[] = "cachalot-error";

}  // namespace

Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& call) {
  const bool ambiguous =
      status.error_code() == grpc::StatusCode::UNKNOWN || status.error_code() == grpc::StatusCode::INTERNAL;
  const bool broke = ambiguous && !call.GetServerTrailingMetadata().contains(kChosenByRouter);
  return {static_cast<int>(broke ? grpc::StatusCode::UNAVAILABLE : status.error_code()), status.error_message()};
}

Routers::Routers(const std::string& list, const ClientOptions& options) : options_(options) {
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    const std::string address = list.substr(at, end - at);
    at = end + 1;
    if (address.empty() && !(all_.empty() && at > list.size())) continue;
    const auto channel = MakeChannel(address);
    all_.push_back({address, v1::Inference::NewStub(channel), v1::Debug::NewStub(channel)});
  }
  if (options_.attempts <= 0) options_.attempts = all_.size() == 1 ? 1 : 2 * static_cast<int>(all_.size());
}

void Failures::Add(const std::string& address, const Status& status) {
  ++attempts_;
  for (auto& [known, why] : last_)
    if (known == address) return void(why = status.message);
  last_.emplace_back(address, status.message);
}

std::string Failures::Describe() const {
  std::string text;
  for (const auto& [address, why] : last_) text += (text.empty() ? "" : "; ") + address + ": " + why;
  return text;
}

}  // namespace cachalot::client
