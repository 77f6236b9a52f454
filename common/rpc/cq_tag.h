#pragma once
// What a completion queue carries as its tag, and the awaiter around one operation.

#include <atomic>
#include <coroutine>
#include <utility>

#include "common/base/check.h"

namespace cachalot::rpc {

/// The tag of every operation on a Loop's queue. The loop calls Complete on its thread, once per Arm.
class CqTag {
 public:
  virtual void Complete(bool ok) = 0;

  /// The pointer to hand to gRPC. The release store, with the acquire load in Deliver, orders our data from
  /// the thread that starts an operation to the one that sees it complete; gRPC does so too, but race
  /// detectors cannot see it.
  void* Arm() {
    armed_.store(true, std::memory_order_release);
    return this;
  }
  static void Deliver(void* tag, bool ok) {
    auto* self = static_cast<CqTag*>(tag);
    CHECK(self->armed_.exchange(false, std::memory_order_acq_rel));
    self->Complete(ok);
  }

 protected:
  ~CqTag() = default;

 private:
  std::atomic<bool> armed_{false};
};

/// Awaits one operation: `start(tag)` begins it, the result is gRPC's `ok`. Lives in the frame that awaits
/// it: no allocation. `start` is a plain lambda, so it may capture.
template <typename Start>
class [[nodiscard]] CqOperation final : public CqTag {
 public:
  explicit CqOperation(Start start) : start_(std::move(start)) {}
  CqOperation(const CqOperation&) = delete;
  CqOperation& operator=(const CqOperation&) = delete;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiting) {
    waiting_ = waiting;
    start_(Arm());
  }
  bool await_resume() const noexcept { return ok_; }
  void Complete(bool ok) override {
    ok_ = ok;
    waiting_.resume();
  }

 private:
  Start start_;
  std::coroutine_handle<> waiting_;
  bool ok_ = false;
};

/// One direction of a stream. gRPC allows one operation in flight in each and aborts at a second.
struct StreamDirection {
  bool busy = false;  ///< an operation is in flight
  bool dead = false;  ///< an operation failed or the call ended: later ones fail at once, without gRPC
};

/// Like CqOperation, on one direction of a stream: false at once when that direction is dead.
template <typename Start>
class [[nodiscard]] StreamOperation final : public CqTag {
 public:
  StreamOperation(StreamDirection* direction, Start start)
      : direction_(direction), start_(std::move(start)) {}
  StreamOperation(const StreamOperation&) = delete;
  StreamOperation& operator=(const StreamOperation&) = delete;

  bool await_ready() const noexcept { return direction_->dead; }
  void await_suspend(std::coroutine_handle<> waiting) {
    CHECK_MSG(!direction_->busy, "two reads or two writes at once on one stream");
    direction_->busy = true;
    waiting_ = waiting;
    start_(Arm());
  }
  bool await_resume() const noexcept { return ok_; }
  void Complete(bool ok) override {
    ok_ = ok;
    direction_->busy = false;
    if (!ok) direction_->dead = true;
    waiting_.resume();
  }

 private:
  StreamDirection* direction_;
  Start start_;
  std::coroutine_handle<> waiting_;
  bool ok_ = false;
};

}  // namespace cachalot::rpc
