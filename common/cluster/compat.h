#pragma once
// What two peers must agree on before they share work (docs/architecture.md), and sequences on the wire.

#include <optional>
#include <string_view>

#include "cachalot/v1/cluster.pb.h"
#include "cachalot/v1/logprobs.pb.h"
#include "cachalot/v1/sequence.pb.h"
#include "common/engine/generation.h"
#include "common/kernels/kernels.h"
#include "common/kv/pool_spec.h"
#include "common/model/weights.h"

namespace cachalot {

inline constexpr uint32_t kProtocolVersion = 1;

v1::Compat MakeCompat(const ModelWeights& weights, const KvLayout& layout, const kernels::KernelTable& kernels);

/// FAILED_PRECONDITION names the first field that differs, both values and both peers.
Status CheckCompat(const v1::Compat& ours, const v1::Compat& theirs, std::string_view peer);

v1::SequenceState ToProto(const SequenceState& state);
/// INVALID_ARGUMENT for values that no router sends: an empty prompt, ids outside [0, vocab), max_tokens < 1 or not
/// above the emitted tokens, bad sampling parameters.
StatusOr<SequenceState> FromProto(const v1::SequenceState& proto, int vocab_size);

v1::TokenLogprobs ToProto(const TokenLogprobs& logprobs);
/// Nothing for an empty message; INVALID_ARGUMENT when the parallel arrays differ in length.
StatusOr<std::optional<TokenLogprobs>> FromProto(const v1::TokenLogprobs& proto);

v1::StepFinish ToProto(FinishReason reason);
FinishReason FromProto(v1::StepFinish finish);

}  // namespace cachalot
