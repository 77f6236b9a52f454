#include "common/rpc/cancel_scope.h"

#include "common/base/check.h"

namespace cachalot::rpc {

void CancelHook::Attach(CancelScope* scope) {
  CHECK(scope_ == nullptr);
  if (scope->cancelled_) {
    OnCancel();
    return;
  }
  scope_ = scope;
  previous_ = scope->last_;
  next_ = nullptr;
  (scope->last_ != nullptr ? scope->last_->next_ : scope->first_) = this;
  scope->last_ = this;
}

void CancelHook::Detach() {
  if (scope_ == nullptr) return;
  (previous_ != nullptr ? previous_->next_ : scope_->first_) = next_;
  (next_ != nullptr ? next_->previous_ : scope_->last_) = previous_;
  scope_ = nullptr;
}

CancelScope::~CancelScope() {
  while (first_ != nullptr) first_->Detach();
}

void CancelScope::Cancel() {
  cancelled_ = true;
  // A hook may destroy others, so none is held across the call.
  while (first_ != nullptr) {
    CancelHook* hook = first_;
    hook->Detach();
    hook->OnCancel();
  }
}

}  // namespace cachalot::rpc
