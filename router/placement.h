#pragma once
// Which worker takes a request: pure functions of what is known about the workers.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

struct WorkerView {
  std::string name;
  Status health;          // OK, or why it cannot be used
  bool excluded = false;  // this request has failed there already
  int64_t assigned =
      0;  // our own requests there (decode) or their tokens to compute (prefill): exact and current
  int64_t reported = 0;  // running sequences (decode) or waiting tokens (prefill) by its own account: lags
  int64_t free_kv_tokens = 0;    // by its own account
  int64_t wanted_kv_tokens = 0;  // what the request would begin with there
  int64_t cached = 0;  // prefill: tokens of the request that it is likely to have in its prefix cache
};

struct Placement {
  size_t worker = 0;
  std::string reason;  // for the log
  int64_t cached = 0;  // as in the worker's view
};

/// The usable worker with the least work: assigned and the request's own, less what is cached of it; then
/// assigned, then reported (some of it may be over: a request that follows one of ours at once must not be
/// driven off by it), then the most free KV, then the order given. Excluded workers are taken only if no other
/// is usable. Workers with less free KV than wanted come last.
/// UNAVAILABLE names every worker and what is wrong with it.
StatusOr<Placement> Place(std::span<const WorkerView> workers);

}  // namespace cachalot
