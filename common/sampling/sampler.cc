#include "common/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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

constexpr ptrdiff_t kSortWhole = 32;

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

Status ValidateLogitBias(const std::vector<LogitBias>& biases) {
  std::vector<int32_t> ids;
  for (const LogitBias& entry : biases) {
    if (entry.id < 0)
      return InvalidArgument("logit_bias: wanted a token id >= 0, got " + std::to_string(entry.id));
    if (!(entry.bias >= -100 && entry.bias <= 100))
      return InvalidArgument("logit_bias of token " + std::to_string(entry.id) +
                             ": wanted a number in [-100, 100], got " + std::to_string(entry.bias));
    ids.push_back(entry.id);
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice == ids.end()) return OkStatus();
  return InvalidArgument("logit_bias of token " + std::to_string(*twice) + ": wanted one, got two");
}

/// Everything but the biases: allocates nothing when all is well, so every Sample can check it.
Status ValidateNumbers(const SamplingParams& params) {
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
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return refuse("min_p", "a number in [0, 1]", std::to_string(params.min_p));
  }
  for (const auto& [field, value] : {std::pair("frequency_penalty", params.frequency_penalty),
                                     std::pair("presence_penalty", params.presence_penalty)}) {
    if (!(value >= -2 && value <= 2)) return refuse(field, "a number in [-2, 2]", std::to_string(value));
  }
  if (!std::isfinite(params.repetition_penalty) || params.repetition_penalty <= 0) {
    return refuse("repetition_penalty", "a finite number > 0", std::to_string(params.repetition_penalty));
  }
  if (params.min_tokens < 0) return refuse("min_tokens", "a number >= 0", std::to_string(params.min_tokens));
  if (params.logprobs < kNoLogprobs || params.logprobs > kMaxLogprobs) {
    return refuse("logprobs", "0 to 20", std::to_string(params.logprobs));
  }
  return OkStatus();
}

}  // namespace

Status ValidateSamplingParams(const SamplingParams& params) {
  RETURN_IF_ERROR(ValidateNumbers(params));
  return ValidateLogitBias(params.logit_bias);
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
  bucket_.resize(vocab_size);
  weights_.resize(vocab_size);
}

StatusOr<int32_t> Sampler::Sample(std::span<const float> logits, const SamplingParams& params,
                                  uint64_t output_index, const SampleContext& context) {
  CHECK(logits.size() <= order_.size());
  CHECK(ValidateNumbers(params).ok());
  logits = Adjust(logits, params, output_index, context);
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

/// Steps 1 to 4 of the header. The row itself when there is nothing to do, else a copy.
std::span<const float> Sampler::Adjust(std::span<const float> logits, const SamplingParams& params,
                                       uint64_t output_index, const SampleContext& context) {
  const bool too_early = output_index < static_cast<uint64_t>(params.min_tokens);
  const bool masks = too_early && !(context.end_ids.empty() && context.stop_ids.empty());
  if (params.logit_bias.empty() && !masks && !params.has_penalties()) return logits;
  if (adjusted_.empty()) adjusted_.resize(order_.size());
  const std::span<float> row(adjusted_.data(), logits.size());
  std::copy(logits.begin(), logits.end(), row.begin());
  const auto inside = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < row.size(); };

  for (const LogitBias& entry : params.logit_bias)
    if (inside(entry.id)) row[entry.id] += entry.bias;
  if (masks) {
    for (const auto& ids : {context.end_ids, context.stop_ids})
      for (const int32_t id : ids)
        if (inside(id)) row[id] = -INFINITY;
  }
  if (!params.has_penalties()) return row;
  CHECK(context.history && context.history->counts());
  for (const TokenHistory::Entry& entry : context.history->entries()) {
    if (!inside(entry.id)) continue;
    float& logit = row[entry.id];
    // A penalty near 0 could make it infinite.
    logit = logit > 0 ? std::min(logit / params.repetition_penalty, std::numeric_limits<float>::max())
                      : logit * params.repetition_penalty;
    if (entry.in_output == 0) continue;
    logit -= params.frequency_penalty * static_cast<float>(entry.in_output);
    logit -= params.presence_penalty;
  }
  return row;
}

/// Makes the candidates: tokens that temperature, min-p and top-k leave a weight above 0.
void Sampler::Weigh(std::span<const float> logits, float top, const SamplingParams& params) {
  const double rate = 1.0 / params.temperature;
  // Every operation here is monotonic in the logit, rounding included, so buckets never contradict the order.
  const auto exponent = [&](size_t id) { return (static_cast<double>(logits[id]) - top) * rate; };
  bucket_count_.fill(0);
  for (size_t id = 0; id < logits.size(); ++id) {
    const double x = exponent(id);
    bucket_[id] = kNoBucket;
    if (x <= kLeastExponent) continue;
    bucket_[id] = static_cast<uint8_t>(std::min(x * (kBuckets / kLeastExponent), kBuckets - 1.0));
    ++bucket_count_[bucket_[id]];
  }
  if (params.top_k > 0) KeepTop(logits, params.top_k);

  // Weights are relative to the top token's as min-p is, and the product is exact: min_p has 24 bits. What it
  // keeps is a run from the top, as what top-k keeps, so it does not matter which comes first.
  const auto least = static_cast<uint64_t>(static_cast<double>(params.min_p) * kTopWeight);
  bucket_mass_.fill(0);
  for (size_t id = 0; id < logits.size(); ++id) {
    if (bucket_[id] == kNoBucket) continue;
    weights_[id] = static_cast<uint64_t>(std::exp(exponent(id)) * kTopWeight + 0.5);
    if (weights_[id] < least) {
      bucket_[id] = kNoBucket;
      continue;
    }
    bucket_mass_[bucket_[id]] += weights_[id];
  }
  total_ = std::accumulate(bucket_mass_.begin(), bucket_mass_.end(), uint64_t{0});
}

/// Drops all but the first `count` candidates.
void Sampler::KeepTop(std::span<const float> logits, size_t count) {
  int last = 0;
  size_t above = 0;  // candidates in the buckets before `last`
  while (last < kBuckets && above + bucket_count_[last] <= count) above += bucket_count_[last++];
  if (last == kBuckets) return;
  const auto keep = order_.begin() + static_cast<ptrdiff_t>(count - above);
  const auto end = order_.begin() + static_cast<ptrdiff_t>(Gather(logits.size(), last));
  std::nth_element(order_.begin(), keep, end, Before{logits});
  std::for_each(keep, end, [&](int32_t id) { bucket_[id] = kNoBucket; });
  for (uint8_t& bucket : std::span(bucket_).first(logits.size())) {
    if (bucket > last) bucket = kNoBucket;
  }
}

/// Writes the tokens of a bucket to order_, by ascending id, and returns how many they are.
size_t Sampler::Gather(size_t tokens, int bucket) {
  size_t count = 0;
  for (size_t id = 0; id < tokens; ++id) {
    if (bucket_[id] == bucket) order_[count++] = static_cast<int32_t>(id);
  }
  return count;
}

/// The shortest run of candidates, from the top, that weighs at least `mass` (1 to total_). Finds the bucket
/// that holds its end, then halves what is left until that is small: O(vocab), where sorting it all would be
/// the slowest part of a step.
Sampler::Prefix Sampler::PrefixOfMass(std::span<const float> logits, uint64_t mass) {
  CHECK(mass >= 1 && mass <= total_);
  const Before before{logits};
  uint64_t passed = 0;  // weight of the tokens before `begin`, all of which come first in the order
  int bucket = 0;
  while (passed + bucket_mass_[bucket] < mass) passed += bucket_mass_[bucket++];
  auto begin = order_.begin(), end = begin + static_cast<ptrdiff_t>(Gather(logits.size(), bucket));
  while (end - begin > kSortWhole) {
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
