#pragma once
// What a request asks of the sampler.

#include <cstdint>
#include <vector>

namespace cachalot {

struct SamplingParams {
  float temperature = 1.f;  // 0: greedy
  int top_k = 0;            // 0: off
  float top_p = 1.f;        // 1: off
  uint64_t seed = 0;        // the router draws one when the request has none
};

}  // namespace cachalot
