#pragma once
// Errors that the world can cause. CHECK (check.h) is for our own bugs; nothing throws across module borders.
// Debian's Abseil has its own string_view, so the factories take std types and StatusMessage gives them back.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace cachalot {

using Status = absl::Status;
using StatusCode = absl::StatusCode;
template <typename T>
using StatusOr = absl::StatusOr<T>;

inline Status OkStatus() { return absl::OkStatus(); }
Status MakeStatus(StatusCode code, std::string_view message);
Status InvalidArgument(std::string_view message);
Status NotFound(std::string_view message);
Status FailedPrecondition(std::string_view message);
Status OutOfRange(std::string_view message);
Status ResourceExhausted(std::string_view message);
Status Unavailable(std::string_view message);
Status DeadlineExceeded(std::string_view message);
Status Cancelled(std::string_view message);
Status Aborted(std::string_view message);
Status DataLoss(std::string_view message);
Status Internal(std::string_view message);
Status Unimplemented(std::string_view message);

std::string StatusMessage(const Status& status);

/// The same error with `context` and ": " before its message.
Status Annotate(const Status& status, std::string_view context);

}  // namespace cachalot

#define CACHALOT_CONCAT_INNER(a, b) a##b
#define CACHALOT_CONCAT(a, b) CACHALOT_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                   \
  do {                                                                \
    ::cachalot::Status cachalot_status_in_macro = (expression);       \
    if (!cachalot_status_in_macro.ok()) return cachalot_status_in_macro; \
  } while (0)

#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_IMPL(CACHALOT_CONCAT(status_or_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                  \
  if (!temporary.ok()) return temporary.status();                 \
  declaration = std::move(*temporary)

// The same two for coroutines (co_return).
#define CO_RETURN_IF_ERROR(expression)                                   \
  do {                                                                   \
    ::cachalot::Status cachalot_status_in_macro = (expression);          \
    if (!cachalot_status_in_macro.ok()) co_return cachalot_status_in_macro; \
  } while (0)

#define CO_ASSIGN_OR_RETURN(declaration, expression) \
  CO_ASSIGN_OR_RETURN_IMPL(CACHALOT_CONCAT(status_or_, __LINE__), declaration, expression)
#define CO_ASSIGN_OR_RETURN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                     \
  if (!temporary.ok()) co_return temporary.status();                 \
  declaration = std::move(*temporary)
