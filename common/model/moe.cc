#include "common/model/moe.h"

#include <algorithm>
#include <numeric>

namespace cachalot {
namespace {

/// The K experts of row t, by the token's table entry or by score + bias (ties to the lower id).
void ChooseExperts(Step& step, int layer, const MoeWeights& w, int64_t t, const float* score, int32_t* ids) {
  const ModelConfig& c = step.config;
  const int K = c.num_experts_per_tok, E = c.n_routed_experts;
  if (c.hash_layer[layer]) {
    std::copy_n(w.tid2eid.data() + static_cast<int64_t>(step.s.ids[t]) * K, K, ids);
    return;
  }
  float* biased = Room(step.s.biased, E);
  for (int e = 0; e < E; ++e) biased[e] = score[e] + w.bias[e];
  auto& order = step.s.order;
  order.resize(E);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + K, order.end(), [biased](int32_t a, int32_t b) {
    return biased[a] != biased[b] ? biased[a] > biased[b] : a < b;
  });
  std::copy_n(order.begin(), K, ids);
}

void Route(Step& step, int layer, const MoeWeights& w, const float* u) {
  const ModelConfig& c = step.config;
  Scratch& s = step.s;
  const int64_t T = step.rows(), E = c.n_routed_experts, K = c.num_experts_per_tok;
  float* score = Room(s.router, T * E);
  step.LinearF32(u, w.gate, score);
  step.kernels.router_scores({score, T * E});
  s.expert_ids.resize(T * K);
  float* weights = Room(s.expert_weights, T * K);
  for (int64_t t = 0; t < T; ++t) {
    int32_t* ids = s.expert_ids.data() + t * K;
    ChooseExperts(step, layer, w, t, score + t * E, ids);
    if (ChoiceTrace* choices = step.segments[s.segment[t]].choices)
      choices->Apply(ChoiceTrace::Kind::kExperts, layer, s.positions[t], {ids, static_cast<size_t>(K)});
    float sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += weights[t * K + k] = score[t * E + ids[k]];
    for (int64_t k = 0; k < K; ++k)  // the bias had a say in the choice, it has none in the weights
      weights[t * K + k] = weights[t * K + k] / std::max(sum, 1e-30f) * c.routed_scaling_factor;
  }
  s.plan.Build(s.expert_ids, {weights, static_cast<size_t>(T * K)}, c.num_experts_per_tok, step.groups);
}

void SharedExpert(Step& step, const ExpertWeights& w, const float* u) {
  Scratch& s = step.s;
  const int64_t T = step.rows(), F = w.w1.rows;
  step.Linear(u, w.w1, Room(s.gate, T * F));
  step.Linear(u, w.w3, Room(s.up, T * F));
  step.kernels.swiglu({s.gate.data(), s.up.data(), nullptr, s.gate.data(), T, F, step.config.swiglu_limit});
  step.Round(s.gate.data(), T * F);
  step.Linear(s.gate.data(), w.w2, Room(s.shared, T * w.w2.rows));
}

}  // namespace

Status Moe(Step& step, int layer, const MoeWeights& w, const float* u, float* y) {
  Scratch& s = step.s;
  const int64_t D = step.config.hidden_size;
  Route(step, layer, w, u);
  float* partials = Room(s.partials, s.plan.slots() * D);
  RETURN_IF_ERROR(step.experts.Begin({layer, step.rows(), D, u, &s.plan, partials, step.kernels.mode == kernels::NumericMode::kBf16}));
  SharedExpert(step, w.shared, u);
  RETURN_IF_ERROR(step.experts.Wait());
  CombinePartials(s.plan, partials, s.shared.data(), D, y);
  step.Round(y, step.rows() * D);
  return OkStatus();
}

}  // namespace cachalot
