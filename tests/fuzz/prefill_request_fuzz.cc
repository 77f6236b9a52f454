// cachalot.v1.PrefillRequest as a router sends it, up to where the prefill worker looks for room.

#include <algorithm>
#include <array>

#include "common/rpc/error_map.h"
#include "prefill_worker/chunk_planner.h"
#include "prefill_worker/prefill_request.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet_logs.h"

namespace cachalot::fuzz {
namespace {

constexpr int kVocab = 64;
constexpr int64_t kChunk = 256;

/// Short, so that most mutations meet something else.
v1::Compat Ours() {
  v1::Compat compat;
  compat.set_weights("w");
  compat.set_protocol(kProtocolVersion);
  compat.set_state_format(1);
  compat.set_mode("exact");
  compat.set_kv_layout("kv");
  compat.set_reduction_groups(8);
  compat.set_numerics("ref");
  return compat;
}

StatusOr<SequenceState> Admit(const v1::PrefillRequest& request, bool debug_logits) {
  return AdmitPrefill(request, Ours(), kVocab, debug_logits);
}

void CheckRefusal(const Status& status) {
  CHECK(status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kFailedPrecondition);
  const grpc::Status said = rpc::ToGrpc(status);
  CHECK(!said.error_message().empty() && said.error_message().size() <= 2000);
}

void CheckAdmitted(const v1::PrefillRequest& request, const SequenceState& state) {
  CHECK(CheckCompat(Ours(), request.compat(), "the router").ok());
  CHECK(!request.decode_address().empty() && request.lease().id() != 0 && !state.prompt.empty());
  for (const auto* ids : {&state.prompt, &state.emitted, &state.forced})
    CHECK(std::all_of(ids->begin(), ids->end(), [](int32_t id) { return id >= 0 && id < kVocab; }));
  CHECK(std::equal(state.prompt.begin(), state.prompt.end(), request.state().prompt().begin(),
                   request.state().prompt().end()));
  // Whatever chunk the request asks for, its first step takes some of it and no more than there is.
  const std::array remaining = {static_cast<int64_t>(state.prompt.size() + state.emitted.size())};
  const std::array limit = {int64_t{request.max_chunk_tokens()}};
  const int64_t taken = PlanChunk(remaining, limit, kChunk)[0];
  CHECK(taken >= 1 && taken <= std::min(remaining[0], kChunk) && (limit[0] == 0 || taken <= limit[0]));
  // Another worker takes what this one has taken.
  v1::PrefillRequest passed_on = request;
  *passed_on.mutable_state() = ToProto(state);
  const auto there = Admit(passed_on, true);
  CHECK_MSG(there.ok(), StatusMessage(there.status()));
  CHECK(ToProto(*there).SerializeAsString() == passed_on.state().SerializeAsString());
}

void CheckRequest(const v1::PrefillRequest& request) {
  const auto plain = Admit(request, false), debug = Admit(request, true);
  for (const auto* state : {&plain, &debug}) {
    if (state->ok())
      CheckAdmitted(request, **state);
    else
      CheckRefusal(state->status());
  }
  const bool debugs = request.state().forced_size() > 0 || request.state().want_logits();
  CHECK(plain.ok() == (debug.ok() && !debugs));
  if (debug.ok() && debugs) CHECK(plain.status().code() == StatusCode::kFailedPrecondition);
}

}  // namespace

std::vector<Seed> Seeds() {
  SequenceState state;
  state.request_id = "r1";
  state.prompt = {1, 2, 3};
  state.params.max_tokens = 5;
  v1::PrefillRequest small;
  *small.mutable_state() = ToProto(state);
  small.mutable_lease()->set_id(9);
  small.mutable_lease()->set_epoch(1234);
  small.set_decode_address("127.0.0.1:1");
  *small.mutable_compat() = Ours();
  v1::PrefillRequest again = small, debug = small, older = small, other = small, no_lease = small, nowhere = small;
  state.emitted = {4, 5};
  state.params.stop_token_ids = {7};
  state.params.prompt_logprobs = 2;
  state.params.sampling.seed = 99;
  state.params.sampling.logit_bias = {{3, 1.f}};
  *again.mutable_state() = ToProto(state);
  again.set_attempt(3);
  again.set_max_chunk_tokens(2);
  debug.mutable_state()->add_forced(6);
  debug.mutable_state()->set_want_logits(true);
  older.mutable_compat()->set_protocol(0);
  other.mutable_compat()->set_numerics("cpu");
  no_lease.clear_lease();
  nowhere.clear_decode_address();
  const auto seed = [](const char* name, const v1::PrefillRequest& request) {
    return Seed{name, request.SerializeAsString()};
  };
  return {seed("small", small), seed("again", again),       seed("debug", debug),    seed("older", older),
          seed("other", other), seed("no_lease", no_lease), seed("nowhere", nowhere)};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  fuzz::QuietLogs();
  v1::PrefillRequest request;
  if (request.ParseFromArray(data, static_cast<int>(size))) fuzz::CheckRequest(request);
  return 0;
}
