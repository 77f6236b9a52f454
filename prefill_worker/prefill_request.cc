#include "prefill_worker/prefill_request.h"

namespace cachalot {

StatusOr<SequenceState> AdmitPrefill(const v1::PrefillRequest& request, const v1::Compat& ours, int vocab_size,
                                     bool debug_logits) {
  RETURN_IF_ERROR(CheckCompat(ours, request.compat(), "the router"));
  if (!debug_logits && (request.state().forced_size() > 0 || request.state().want_logits()))
    return FailedPrecondition("forced tokens and logits need a prefill worker that runs with --debug-logits");
  if (request.decode_address().empty())
    return InvalidArgument("decode_address: wanted host:port, got nothing");
  if (request.lease().id() == 0) return InvalidArgument("lease: wanted the decode worker's, got none");
  return FromProto(request.state(), vocab_size);
}

}  // namespace cachalot
