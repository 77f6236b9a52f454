#include "common/rpc/server_call.h"

#include <algorithm>

namespace cachalot::rpc {

void LiveCalls::Add() {
  std::lock_guard lock(mutex_);
  ++count_;
}

void LiveCalls::Remove() {
  std::lock_guard lock(mutex_);
  if (--count_ == 0) none_.notify_all();
}

void LiveCalls::NoteEnd(TimePoint when) {
  std::lock_guard lock(mutex_);
  last_end_ = std::max(last_end_, when);
}

bool LiveCalls::WaitNone(TimePoint deadline) {
  std::unique_lock lock(mutex_);
  return none_.wait_until(lock, deadline, [this] { return count_ == 0; });
}

TimePoint LiveCalls::last_end() const {
  std::lock_guard lock(mutex_);
  return last_end_;
}

ServerCall::ServerCall(Loop* loop, LiveCalls* live)
    : loop_(loop), live_(live), cancelled_(loop), tasks_(loop) {
  live_->Add();
}

ServerCall::~ServerCall() { live_->Remove(); }

std::optional<std::string> ServerCall::Metadata(std::string_view key) const {
  const auto& metadata = context_.client_metadata();
  const auto found = metadata.find(grpc::string_ref(key.data(), key.size()));
  if (found == metadata.end()) return std::nullopt;
  return std::string(found->second.data(), found->second.size());
}

void ServerCall::AddInitialMetadata(const std::string& key, const std::string& value) {
  context_.AddInitialMetadata(key, value);
}

void ServerCall::AddTrailingMetadata(const std::string& key, const std::string& value) {
  context_.AddTrailingMetadata(key, value);
}

void ServerCall::OnDone() {
  done_ = true;
  live_->NoteEnd(loop_->Now());
  if (context_.IsCancelled()) {
    cancelled_.Set();
    scope_.Cancel();
  }
  if (waits_for_done_) loop_->Resume(waits_for_done_);
}

namespace {
struct DoneWait {
  bool done;
  std::coroutine_handle<>* slot;
  bool await_ready() const { return done; }
  void await_suspend(std::coroutine_handle<> waiting) const { *slot = waiting; }
  void await_resume() const {}
};
}  // namespace

Task<void> ServerCall::WaitReleased() {
  // Not a Waiter: gRPC keeps a pointer into this call, so not even the end of the loop's grace may cut the
  // wait.
  DoneWait wait{done_, &waits_for_done_};
  co_await wait;
  co_await tasks_.JoinAll();
}

}  // namespace cachalot::rpc
