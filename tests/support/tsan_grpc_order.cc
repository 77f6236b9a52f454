// Linked into every program of the `tsan` preset, into no other. Debian's gRPC is not instrumented, so ThreadSanitizer does not
// see that what happened before an operation was handed to gRPC also happened before whatever a completion tells. These
// definitions stand before gRPC's own and say it: every operation releases, every completion acquires. A slice of ours is
// destroyed on whichever thread drops it last, behind all that happened before it was made.
//
// One place orders all calls of a process with each other, which is more than gRPC promises: a race between two threads
// that both also used gRPC in between is not seen.

#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <sanitizer/tsan_interface.h>

namespace {

char order;  // its address stands for gRPC

template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

struct Slice {
  void (*destroy)(void*);
  void* user_data;

  static void Destroy(void* pointer) {
    auto* const self = static_cast<Slice*>(pointer);
    __tsan_acquire(self);
    self->destroy(self->user_data);
    delete self;
  }
};

}  // namespace

extern "C" {

grpc_slice grpc_slice_new_with_user_data(void* bytes, size_t size, void (*destroy)(void*), void* user_data) {
  static auto* const next = Next<decltype(grpc_slice_new_with_user_data)>("grpc_slice_new_with_user_data");
  auto* const slice = new Slice{destroy, user_data};
  __tsan_release(slice);
  return next(bytes, size, Slice::Destroy, slice);
}

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  static auto* const next = Next<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(&order);
  return next(call, ops, count, tag, reserved);
}

grpc_call_error grpc_call_cancel_with_status(grpc_call* call, grpc_status_code status,
                                             const char* description, void* reserved) {
  static auto* const next = Next<decltype(grpc_call_cancel_with_status)>("grpc_call_cancel_with_status");
  __tsan_release(&order);
  return next(call, status, description, reserved);
}

grpc_call_error grpc_call_cancel(grpc_call* call, void* reserved) {
  static auto* const next = Next<decltype(grpc_call_cancel)>("grpc_call_cancel");
  __tsan_release(&order);
  return next(call, reserved);
}

grpc_call_error grpc_server_request_call(grpc_server* server, grpc_call** call, grpc_call_details* details,
                                         grpc_metadata_array* metadata, grpc_completion_queue* bound_to_call,
                                         grpc_completion_queue* for_notification, void* tag) {
  static auto* const next = Next<decltype(grpc_server_request_call)>("grpc_server_request_call");
  __tsan_release(&order);
  return next(server, call, details, metadata, bound_to_call, for_notification, tag);
}

grpc_call_error grpc_server_request_registered_call(grpc_server* server, void* method, grpc_call** call,
                                                    gpr_timespec* deadline, grpc_metadata_array* metadata,
                                                    grpc_byte_buffer** payload,
                                                    grpc_completion_queue* bound_to_call,
                                                    grpc_completion_queue* for_notification, void* tag) {
  static auto* const next =
      Next<decltype(grpc_server_request_registered_call)>("grpc_server_request_registered_call");
  __tsan_release(&order);
  return next(server, method, call, deadline, metadata, payload, bound_to_call, for_notification, tag);
}

void grpc_server_shutdown_and_notify(grpc_server* server, grpc_completion_queue* queue, void* tag) {
  static auto* const next = Next<decltype(grpc_server_shutdown_and_notify)>("grpc_server_shutdown_and_notify");
  __tsan_release(&order);
  next(server, queue, tag);
}

void grpc_completion_queue_shutdown(grpc_completion_queue* queue) {
  static auto* const next = Next<decltype(grpc_completion_queue_shutdown)>("grpc_completion_queue_shutdown");
  __tsan_release(&order);
  next(queue);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static auto* const next = Next<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = next(queue, deadline, reserved);
  __tsan_acquire(&order);
  return event;
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline,
                                       void* reserved) {
  static auto* const next = Next<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = next(queue, tag, deadline, reserved);
  __tsan_acquire(&order);
  return event;
}

}  // extern "C"
