#pragma once
// What a request asks of the sampler.

#include <cstdint>
#include <vector>

namespace cachalot {

struct LogitBias {
  int32_t id = 0;
  float bias = 0.f;  // added to the logit
  bool operator==(const LogitBias&) const = default;
};

inline constexpr int kNoLogprobs = -1;
inline constexpr int kMaxLogprobs = 20;

struct SamplingParams {
  float temperature = 1.f;  // 0: greedy
  int top_k = 0;            // 0: off
  float top_p = 1.f;        // 1: off
  uint64_t seed = 0;        // the router draws one when the request has none
  float min_p = 0.f;        // least probability, relative to the likeliest token's; 0: off

  float frequency_penalty = 0.f;  // of a logit, for each time that the output has the token; 0: off
  float presence_penalty = 0.f;   // of a logit, once if the output has the token; 0: off
  float repetition_penalty =
      1.f;  // divides logits > 0 of tokens in prompt or output, else multiplies; 1: off
  std::vector<LogitBias> logit_bias{};  // an id at most once
  int min_tokens = 0;                   // output tokens before anything but max_tokens may end the output

  int logprobs = kNoLogprobs;  // report the chosen token's log probability and of so many of the likeliest

  /// Whether sampling depends on the tokens before (TokenHistory).
  bool has_penalties() const {
    return frequency_penalty != 0 || presence_penalty != 0 || repetition_penalty != 1;
  }
};

}  // namespace cachalot
