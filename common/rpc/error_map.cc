#include "common/rpc/error_map.h"

#include <string>

namespace cachalot::rpc {
namespace {
// Trailers are limited to 8 KiB, and a byte may take three when escaped.
constexpr size_t kMaxMessageBytes = 2000;
}  // namespace

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = StatusMessage(status);
  if (message.size() > kMaxMessageBytes) message = message.substr(0, kMaxMessageBytes - 3) + "...";
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

bool GivenByHandler(const grpc::ClientContext& call) {
  return call.GetServerTrailingMetadata().contains(kHandlerErrorKey);
}

Status FromGrpc(const grpc::Status& status, bool given_by_handler) {
  auto code = static_cast<StatusCode>(status.error_code());
  const bool ambiguous =
      status.error_code() == grpc::StatusCode::UNKNOWN || status.error_code() == grpc::StatusCode::INTERNAL;
  if (ambiguous && !given_by_handler) code = StatusCode::kUnavailable;
  return MakeStatus(code, status.error_message());
}

bool IsRetryable(StatusCode code) {
  return code == StatusCode::kUnavailable || code == StatusCode::kAborted ||
         code == StatusCode::kResourceExhausted;
}

}  // namespace cachalot::rpc
