#pragma once
// What the prefill worker takes, before it looks for room: a pure function.

#include "cachalot/v1/prefill.pb.h"
#include "common/cluster/compat.h"

namespace cachalot {

/// The sequence of a request whose router agrees with `ours`, and which says where its KV goes. FAILED_PRECONDITION for
/// a router that differs and, without `debug_logits`, for forced tokens and logits; INVALID_ARGUMENT for what no router
/// sends.
StatusOr<SequenceState> AdmitPrefill(const v1::PrefillRequest& request, const v1::Compat& ours, int vocab_size,
                                     bool debug_logits);

}  // namespace cachalot
