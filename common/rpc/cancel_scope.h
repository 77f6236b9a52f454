#pragma once
// Cancellation of whatever hangs on something that ended: a call that its client gave up, a loop that shuts
// down. Belongs to one loop's thread.

#include <functional>
#include <utility>

namespace cachalot::rpc {

class CancelScope;

/// Something to do when a scope is cancelled. Leaves its scope by itself when destroyed.
class CancelHook {
 public:
  CancelHook() = default;
  CancelHook(const CancelHook&) = delete;
  CancelHook& operator=(const CancelHook&) = delete;

  /// Joins `scope`; if that is cancelled already, OnCancel runs at once.
  void Attach(CancelScope* scope);
  void Detach();

 protected:
  ~CancelHook() { Detach(); }
  /// At most once per Attach; the hook has left the scope by then. May destroy other hooks.
  virtual void OnCancel() = 0;

 private:
  friend class CancelScope;
  CancelScope* scope_ = nullptr;
  CancelHook* previous_ = nullptr;
  CancelHook* next_ = nullptr;
};

class CancelScope {
 public:
  CancelScope() = default;
  CancelScope(const CancelScope&) = delete;
  CancelScope& operator=(const CancelScope&) = delete;
  ~CancelScope();

  /// Runs every hook, first come first. Later ones run when they attach.
  void Cancel();
  bool cancelled() const { return cancelled_; }

 private:
  friend class CancelHook;
  CancelHook* first_ = nullptr;
  CancelHook* last_ = nullptr;
  bool cancelled_ = false;
};

/// Calls a function when the scope is cancelled, unless destroyed before: `CancelCallback close(&scope, [&] {
/// ... });`
class CancelCallback final : public CancelHook {
 public:
  CancelCallback(CancelScope* scope, std::function<void()> callback) : callback_(std::move(callback)) {
    Attach(scope);
  }

 private:
  void OnCancel() override { callback_(); }
  std::function<void()> callback_;
};

}  // namespace cachalot::rpc
