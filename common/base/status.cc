#include "common/base/status.h"

#include "absl/strings/string_view.h"

namespace cachalot {

Status MakeStatus(StatusCode code, std::string_view message) {
  return Status(code, absl::string_view(message.data(), message.size()));
}
Status InvalidArgument(std::string_view message) { return MakeStatus(StatusCode::kInvalidArgument, message); }
Status NotFound(std::string_view message) { return MakeStatus(StatusCode::kNotFound, message); }
Status FailedPrecondition(std::string_view message) {
  return MakeStatus(StatusCode::kFailedPrecondition, message);
}
Status OutOfRange(std::string_view message) { return MakeStatus(StatusCode::kOutOfRange, message); }
Status ResourceExhausted(std::string_view message) { return MakeStatus(StatusCode::kResourceExhausted, message); }
Status Unavailable(std::string_view message) { return MakeStatus(StatusCode::kUnavailable, message); }
Status DeadlineExceeded(std::string_view message) { return MakeStatus(StatusCode::kDeadlineExceeded, message); }
Status Cancelled(std::string_view message) { return MakeStatus(StatusCode::kCancelled, message); }
Status Aborted(std::string_view message) { return MakeStatus(StatusCode::kAborted, message); }
Status DataLoss(std::string_view message) { return MakeStatus(StatusCode::kDataLoss, message); }
Status Internal(std::string_view message) { return MakeStatus(StatusCode::kInternal, message); }
Status Unimplemented(std::string_view message) { return MakeStatus(StatusCode::kUnimplemented, message); }

std::string StatusMessage(const Status& status) {
  return std::string(status.message().data(), status.message().size());
}

Status Annotate(const Status& status, std::string_view context) {
  return MakeStatus(status.code(), std::string(context) + ": " + StatusMessage(status));
}

}  // namespace cachalot
