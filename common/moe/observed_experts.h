#pragma once
// An expert back end that tells how long its calls take: from Begin until Wait has returned.

#include <functional>
#include <memory>
#include <utility>

#include "common/base/time.h"
#include "common/moe/expert_backend.h"

namespace cachalot {

class ObservedExperts final : public ExpertBackend {
 public:
  /// `observe` hears of every call that succeeded. `clock` must outlive this.
  ObservedExperts(std::unique_ptr<ExpertBackend> experts, const Clock* clock, std::function<void(Duration)> observe)
      : experts_(std::move(experts)), clock_(clock), observe_(std::move(observe)) {}

  Status Begin(const ExpertCall& call) override {
    begun_ = clock_->Now();
    return experts_->Begin(call);
  }
  Status Wait() override {
    Status status = experts_->Wait();
    if (status.ok()) observe_(clock_->Now() - begun_);
    return status;
  }

 private:
  std::unique_ptr<ExpertBackend> experts_;
  const Clock* const clock_;
  const std::function<void(Duration)> observe_;
  TimePoint begun_{};
};

/// `make` with its back end observed; `make` is any callable that gives StatusOr<std::unique_ptr<ExpertBackend>>.
template <typename Make>
auto Observed(Make make, const Clock* clock, std::function<void(Duration)> observe) {
  return [make = std::move(make), clock, observe](auto* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    ASSIGN_OR_RETURN(std::unique_ptr<ExpertBackend> experts, make(loop));
    return std::unique_ptr<ExpertBackend>(std::make_unique<ObservedExperts>(std::move(experts), clock, observe));
  };
}

}  // namespace cachalot
