#pragma once
// Where the routed experts of a layer run: in this process (LocalExperts) or in expert services (RemoteExperts).

#include <cstdint>

#include "common/base/status.h"
#include "common/moe/dispatch_plan.h"

namespace cachalot {

/// One MoE layer of one step. The memory stays the caller's and must live until Wait returns.
struct ExpertCall {
  int layer = 0;
  int64_t rows = 0, hidden = 0;
  const float* x = nullptr;            // [rows, hidden]
  const DispatchPlan* plan = nullptr;  // of these rows
  float* partials = nullptr;           // [plan->slots(), hidden]: one weighted sum per (row, group)
  bool bf16 = false;                   // mode bf16: x and partials are bf16 values, and travel as such
};

class ExpertBackend {
 public:
  virtual ~ExpertBackend() = default;

  /// Starts a call; one at a time. The caller may compute until Wait.
  virtual Status Begin(const ExpertCall& call) = 0;

  /// Fills the partials of the call begun last. Every back end gives the same bits. UNAVAILABLE or DEADLINE_EXCEEDED
  /// name the shard; the partials are then undefined and the layer may be begun again.
  virtual Status Wait() = 0;
};

}  // namespace cachalot
