#include "router/admission.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace cachalot {
namespace {

constexpr ModelLimits kLimits{100, 20};

SequenceState Good() {
  SequenceState state;
  state.prompt = {0, 99, 5};
  state.emitted = {7};
  state.params.max_tokens = 17;  // 3 + 17 is the whole context
  state.params.stop_token_ids = {99};
  return state;
}

TEST(Admission, AcceptsUpToTheLimits) {
  EXPECT_TRUE(Admit(Good(), kLimits).ok());
  SequenceState least = Good();
  least.prompt = {1};
  least.emitted.clear();
  least.params.max_tokens = 1;
  least.params.sampling = {0.f, 1, 0.0001f, 1};
  least.request_id.assign(256, 'r');
  least.params.stop_token_ids.assign(1024, 7);
  EXPECT_TRUE(Admit(least, kLimits).ok());
}

TEST(Admission, RefusesWithTheFieldAndTheNumbers) {
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  const struct {
    std::function<void(SequenceState&)> change;
    StatusCode code;
    const char* message;
  } cases[] = {
      {[](auto& s) { s.prompt.clear(); }, kInvalid, "the prompt has no tokens"},
      {[](auto& s) { s.prompt[1] = -1; }, kInvalid, "token_ids[1] is -1, wanted a token id in [0, 100)"},
      {[](auto& s) { s.prompt[2] = 100; }, kInvalid, "token_ids[2] is 100, wanted a token id in [0, 100)"},
      {[](auto& s) { s.prompt[0] = std::numeric_limits<int32_t>::max(); }, kInvalid,
       "token_ids[0] is 2147483647"},
      {[](auto& s) {
         s.emitted = {1, 100};
       },
       kInvalid, "resume_tokens[1] is 100, wanted a token id in [0, 100)"},
      {[](auto& s) { s.params.stop_token_ids = {-5}; }, kInvalid, "stop_token_ids[0] is -5"},
      {[](auto& s) {
         s.forced = {3, -2};
       },
       kInvalid, "ids[1] is -2"},
      {[](auto& s) { s.params.max_tokens = 0; }, kInvalid, "max_tokens is 0, wanted at least 1"},
      {[](auto& s) { s.params.max_tokens = -7; }, kInvalid, "max_tokens is -7, wanted at least 1"},
      {[](auto& s) {
         s.params.max_tokens = 1;
         s.emitted = {3, 4};
       },
       kInvalid, "resume_tokens has 2 tokens, max_tokens allows 1 in all"},
      {[](auto& s) { s.params.sampling.temperature = std::nanf(""); }, kInvalid,
       "temperature: wanted a finite number"},
      {[](auto& s) { s.params.sampling.temperature = INFINITY; }, kInvalid,
       "temperature: wanted a finite number"},
      {[](auto& s) { s.params.sampling.temperature = -0.5f; }, kInvalid, "got -0.5"},
      {[](auto& s) { s.params.sampling.top_k = -1; }, kInvalid, "top_k: wanted a number >= 0, got -1"},
      {[](auto& s) { s.params.sampling.top_p = 0; }, kInvalid, "top_p: wanted a number in (0, 1], got 0"},
      {[](auto& s) { s.params.sampling.top_p = 1.5f; }, kInvalid,
       "top_p: wanted a number in (0, 1], got 1.5"},
      {[](auto& s) { s.params.sampling.top_p = std::nanf(""); }, kInvalid,
       "top_p: wanted a number in (0, 1]"},
      {[](auto& s) { s.params.max_tokens = 18; }, StatusCode::kOutOfRange,
       "the prompt has 3 tokens and max_tokens is 18: together more than the context of 20"},
      {[](auto& s) { s.params.max_tokens = std::numeric_limits<int>::max(); }, StatusCode::kOutOfRange,
       "max_tokens is 2147483647"},
      {[](auto& s) { s.prompt.assign(20, 1); }, StatusCode::kOutOfRange, "the prompt has 20 tokens"},
      {[](auto& s) { s.request_id.assign(257, 'r'); }, kInvalid, "request_id has 257 bytes, wanted at most 256"},
      {[](auto& s) { s.request_id = "a\nb"; }, kInvalid, "request_id: wanted no control characters"},
      {[](auto& s) { s.params.stop_token_ids.assign(1025, 7); }, kInvalid,
       "stop_token_ids has 1025 ids, wanted at most 1024"},
  };
  for (const auto& c : cases) {
    SequenceState state = Good();
    c.change(state);
    const Status status = Admit(state, kLimits);
    EXPECT_EQ(status.code(), c.code) << c.message;
    EXPECT_NE(StatusMessage(status).find(c.message), std::string::npos) << StatusMessage(status);
  }
}

}  // namespace
}  // namespace cachalot
