#include "common/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "common/base/check.h"
#include "common/sampling/philox.h"

namespace cachalot {
namespace {

// The top token's weight. Large enough that rounding (2^-40 of it) is far below what sampling could show,
// small enough that the sum over any vocabulary fits 64 bits. Whole weights also hide an ulp of difference
// between two machines' exp().
constexpr double kTopWeight = 549755813888.0;           // 2^39
constexpr double kLeastExponent = -27.725887222397812;  // -40 ln 2: below it a weight rounds to 0
constexpr int kMaxVocab = 1 << 24;

constexpr size_t kSortWhole = 32;

/// Descending logit, ties to the lower id: a strict order, so that every selection has one answer.
struct Before {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

/// The id of the largest logit, or why there is none.
StatusOr<int32_t> Best(std::span<const float> logits) {
  int32_t best = -1;
  float top = -INFINITY;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == INFINITY) {
      return Internal("logit of token " + std::to_string(i) + ": wanted a number, got " +
                      std::to_string(logits[i]));
    }
    if (logits[i] > top) {
      top = logits[i];
      best = static_cast<int32_t>(i);
    }
  }
  if (best < 0)
    return Internal("logits: wanted one above -inf among " + std::to_string(logits.size()) + ", got none");
  return best;
}

}  // namespace

Status ValidateSamplingParams(const SamplingParams& params) {
  const auto refuse = [](const char* field, const char* wanted, const std::string& got) {
    return InvalidArgument(std::string(field) + ": wanted " + wanted + ", got " + got);
  };
  if (!std::isfinite(params.temperature) || params.temperature < 0) {
    return refuse("temperature", "a finite number >= 0", std::to_string(params.temperature));
  }
  if (params.top_k < 0) return refuse("top_k", "a number >= 0", std::to_string(params.top_k));
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return refuse("top_p", "a number in (0, 1]", std::to_string(params.top_p));
  }
  return OkStatus();
}

double UniformAt(uint64_t seed, uint64_t output_index) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const auto bits = Philox4x32({low(output_index), high(output_index), 0, 0}, {low(seed), high(seed)});
  return static_cast<double>((uint64_t{bits[1]} << 32 | bits[0]) >> 11) * 0x1p-53;
}

Sampler::Sampler(int vocab_size) {
  CHECK(vocab_size > 0 && vocab_size <= kMaxVocab);
  order_.resize(vocab_size);
  weights_.resize(vocab_size);
}

StatusOr<int32_t> Sampler::Sample(std::span<const float> logits, const SamplingParams& params,
                                  uint64_t output_index) {
  CHECK(logits.size() <= order_.size());
  CHECK(ValidateSamplingParams(params).ok());
  ASSIGN_OR_RETURN(const int32_t best, Best(logits));
  if (params.temperature == 0 || params.top_k == 1) return best;
  Weigh(logits, logits[best], params);

  uint64_t nucleus = total_;
  if (params.top_p < 1) {
    const double wanted = std::ceil(static_cast<double>(params.top_p) * static_cast<double>(total_));
    nucleus = PrefixOfMass(logits, std::clamp<uint64_t>(static_cast<uint64_t>(wanted), 1, total_)).mass;
  }
  // The uniform number is a multiple of 2^-53: the product is exact, and below the nucleus' mass.
  const auto uniform = static_cast<uint64_t>(UniformAt(params.seed, output_index) * 0x1p53);
  const auto target = static_cast<uint64_t>(static_cast<unsigned __int128>(uniform) * nucleus >> 53);
  return PrefixOfMass(logits, target + 1).last;
}

/// Makes the candidates: tokens that temperature and top-k leave a weight above 0.
void Sampler::Weigh(std::span<const float> logits, float top, const SamplingParams& params) {
  const double temperature = params.temperature;
  const auto exponent = [&](int32_t id) { return (static_cast<double>(logits[id]) - top) / temperature; };
  candidates_ = 0;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    if (exponent(id) > kLeastExponent) order_[candidates_++] = id;
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates_) {
    std::nth_element(order_.begin(), order_.begin() + params.top_k, order_.begin() + candidates_,
                     Before{logits});
    candidates_ = params.top_k;
  }
  total_ = 0;
  for (size_t i = 0; i < candidates_; ++i) {
    const int32_t id = order_[i];
    weights_[id] = static_cast<uint64_t>(std::exp(exponent(id)) * kTopWeight + 0.5);
    total_ += weights_[id];
  }
}

/// The shortest run of candidates, from the top, that weighs at least `mass` (1 to total_). Halves the range
/// that holds its end until that is small: O(candidates), where sorting them all would be the slowest part of
/// a step.
Sampler::Prefix Sampler::PrefixOfMass(std::span<const float> logits, uint64_t mass) {
  CHECK(mass >= 1 && mass <= total_);
  const Before before{logits};
  auto begin = order_.begin(), end = begin + static_cast<ptrdiff_t>(candidates_);
  uint64_t passed = 0;  // weight of the candidates before `begin`, all of which come first in the order
  while (static_cast<size_t>(end - begin) > kSortWhole) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    uint64_t half = 0;
    for (auto at = begin; at != middle; ++at) half += weights_[*at];
    if (passed + half >= mass) {
      end = middle;
    } else {
      passed += half;
      begin = middle;
    }
  }
  std::sort(begin, end, before);
  for (auto at = begin; at != end; ++at) {
    passed += weights_[*at];
    if (passed >= mass) return {*at, passed};
  }
  CHECK(false);
  return {-1, 0};
}

}  // namespace cachalot
