#pragma once
// What the router accepts: pure checks, before any worker hears of a request.

#include "common/engine/generation.h"

namespace cachalot {

struct ModelLimits {
  int vocab_size = 0;
  int64_t max_context_tokens = 0;
};

inline constexpr size_t kMaxRequestIdBytes = 256, kMaxStopTokenIds = 1024;

/// INVALID_ARGUMENT names the field, what was given and what is accepted; OUT_OF_RANGE, for prompt and output
/// that exceed the context, both numbers.
Status Admit(const SequenceState& state, const ModelLimits& limits);

}  // namespace cachalot
