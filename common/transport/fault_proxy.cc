#include "common/transport/fault_proxy.h"

#include <random>

namespace cachalot {

FaultPlan DieAfter(FrameDirection direction, int64_t frames) {
  return [=](FrameDirection d, int64_t index) { return Fault{.die = d == direction && index >= frames}; };
}

FaultPlan FaultAt(FrameDirection direction, int64_t index, Fault fault) {
  return [=](FrameDirection d, int64_t i) { return d == direction && i == index ? fault : Fault{}; };
}

FaultPlan RandomFaults(uint64_t seed, double rate) {
  return [random = std::mt19937_64(seed), rate](FrameDirection, int64_t) mutable {
    const auto happens = [&] { return static_cast<double>(random() >> 11) * 0x1p-53 < rate; };
    Fault fault;
    fault.lose = happens();
    fault.duplicate = happens();
    if (happens()) fault.corrupt_byte = random();
    if (happens()) fault.delay_polls = static_cast<int>(random() % 4);
    return fault;
  };
}

FaultProxy::FaultProxy(std::unique_ptr<FrameChannel> inner, FaultPlan plan, const Clock* clock)
    : inner_(std::move(inner)),
      capabilities_(inner_->capabilities()),
      plan_(std::move(plan)),
      clock_(clock) {}

Status FaultProxy::status() const {
  return inner_ ? inner_->status() : Unavailable("killed by the fault proxy");
}

void FaultProxy::Take(FrameDirection direction, Frame frame, TimePoint deadline) {
  const bool out = direction == FrameDirection::kOut;
  const Fault fault = plan_(direction, out ? frames_out_++ : frames_in_++);
  if (fault.die) {
    inner_.reset();
    out_.clear();
    in_.clear();
    return;
  }
  if (fault.lose) return;
  if (fault.corrupt_byte && !frame.bytes.empty())
    frame.bytes[*fault.corrupt_byte % frame.bytes.size()] ^= std::byte{1};
  auto& queue = out ? out_ : in_;
  const Held held{std::move(frame), deadline, polls_ + fault.delay_polls, clock_->Now() + fault.delay};
  if (fault.duplicate) queue.push_back(held);
  queue.push_back(held);
}

bool FaultProxy::Ready(const Held& held) const { return held.poll <= polls_ && held.time <= clock_->Now(); }

Status FaultProxy::SendHeld() {
  while (inner_ && !out_.empty() && Ready(out_.front())) {
    const Status sent = inner_->Post(std::move(out_.front().frame), out_.front().deadline);
    out_.pop_front();
    if (!sent.ok()) return sent;
  }
  return status();
}

Status FaultProxy::Post(Frame frame, TimePoint deadline) {
  if (!inner_) return status();
  Take(FrameDirection::kOut, std::move(frame), deadline);
  return SendHeld();
}

std::optional<Frame> FaultProxy::Poll() {
  ++polls_;
  (void)SendHeld();  // a failure shows in status()
  while (inner_) {
    std::optional<Frame> frame = inner_->Poll();
    if (!frame) break;
    Take(FrameDirection::kIn, std::move(*frame), TimePoint::max());
  }
  if (in_.empty() || !Ready(in_.front())) return std::nullopt;
  std::optional<Frame> frame(std::move(in_.front().frame));
  in_.pop_front();
  return frame;
}

}  // namespace cachalot
