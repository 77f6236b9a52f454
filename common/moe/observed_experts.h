#pragma once
// An expert back end that tells how long its calls take, from Begin until Wait has returned, and which fail.

#include <functional>
#include <memory>
#include <utility>

#include "common/base/time.h"
#include "common/moe/expert_backend.h"

namespace cachalot {

class ObservedExperts final : public ExpertBackend {
 public:
  /// `observe` hears of every call that succeeded, `failed` of every other. `clock` must outlive this.
  ObservedExperts(std::unique_ptr<ExpertBackend> experts, const Clock* clock,
                  std::function<void(Duration)> observe, std::function<void()> failed)
      : experts_(std::move(experts)),
        clock_(clock),
        observe_(std::move(observe)),
        failed_(std::move(failed)) {}

  Status Begin(const ExpertCall& call) override {
    begun_ = clock_->Now();
    Status status = experts_->Begin(call);
    if (!status.ok()) failed_();
    return status;
  }
  Status Wait() override {
    Status status = experts_->Wait();
    status.ok() ? observe_(clock_->Now() - begun_) : failed_();
    return status;
  }

 private:
  std::unique_ptr<ExpertBackend> experts_;
  const Clock* const clock_;
  const std::function<void(Duration)> observe_;
  const std::function<void()> failed_;
  TimePoint begun_{};
};

/// `make` with its back end observed; `make` is any callable that gives StatusOr<std::unique_ptr<ExpertBackend>>.
template <typename Make>
auto Observed(Make make, const Clock* clock, std::function<void(Duration)> observe,
              std::function<void()> failed) {
  return [make = std::move(make), clock, observe,
          failed](auto* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    ASSIGN_OR_RETURN(std::unique_ptr<ExpertBackend> experts, make(loop));
    return std::unique_ptr<ExpertBackend>(
        std::make_unique<ObservedExperts>(std::move(experts), clock, observe, failed));
  };
}

}  // namespace cachalot
