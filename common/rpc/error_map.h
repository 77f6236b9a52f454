#pragma once
// The only place where our Status and gRPC's meet. The canonical codes have equal numbers.

#include "common/base/status.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"

namespace cachalot::rpc {

/// Long messages are cut: they travel in trailers, which have a small limit.
grpc::Status ToGrpc(const Status& status);

/// In the trailers of a call whose handler has ended with an error, so that a caller can tell that error from
/// gRPC's own.
inline constexpr char kHandlerErrorKey[] = "cachalot-error";
/// After Finish.
bool GivenByHandler(const grpc::ClientContext& call);

/// UNKNOWN and INTERNAL that no handler gave are gRPC's words for a link that broke within a frame and for
/// bytes that are no message: UNAVAILABLE.
Status FromGrpc(const grpc::Status& status, bool given_by_handler);

/// True when the same request may succeed a little later or at another peer: UNAVAILABLE, ABORTED,
/// RESOURCE_EXHAUSTED. The only reading of an error that decides a retry; never its text.
bool IsRetryable(StatusCode code);
inline bool IsRetryable(const Status& status) { return IsRetryable(status.code()); }

}  // namespace cachalot::rpc
