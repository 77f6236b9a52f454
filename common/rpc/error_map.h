#pragma once
// The only place where our Status and gRPC's meet. The canonical codes have equal numbers.

#include "common/base/status.h"
#include "grpcpp/support/status.h"

namespace cachalot::rpc {

/// Long messages are cut: they travel in trailers, which have a small limit.
grpc::Status ToGrpc(const Status& status);
Status FromGrpc(const grpc::Status& status);

/// True when the same request may succeed a little later or at another peer: UNAVAILABLE, ABORTED,
/// RESOURCE_EXHAUSTED. The only reading of an error that decides a retry; never its text.
bool IsRetryable(StatusCode code);
inline bool IsRetryable(const Status& status) { return IsRetryable(status.code()); }

}  // namespace cachalot::rpc
