#include "common/model/indexer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cachalot {

void IndexerQueries(Step& step, const IndexerWeights& w, const float* u, const float* qr) {
  const ModelConfig& c = step.config;
  Scratch& s = step.s;
  const int64_t T = step.rows();
  float* q = Room(s.index_q, T * w.wq_b.rows);
  float* weight = Room(s.index_w, T * c.index_n_heads);
  step.Linear(qr, w.wq_b, q);
  step.kernels.rope(
      {q, s.cos[1].data(), s.sin[1].data(), T, c.index_n_heads, c.index_head_dim, c.rope_dim, false});
  step.Round(q, T * w.wq_b.rows);
  step.Linear(u, w.weights_proj, weight);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.index_head_dim) * c.index_n_heads));
  for (int64_t i = 0; i < T * c.index_n_heads; ++i) weight[i] *= scale;
}

void SelectEntries(const Step& step, int layer, int64_t t, int64_t visible, IndexerScratch& scratch,
                   std::vector<int32_t>& selected) {
  const ModelConfig& c = step.config;
  // The list shrinks to index_topk below, so resize alone would grow it a little every time.
  if (static_cast<int64_t>(selected.capacity()) < visible) selected.reserve(2 * visible);
  selected.resize(visible);
  std::iota(selected.begin(), selected.end(), 0);
  if (visible <= c.index_topk) return;
  SequenceKv& kv = *step.segments[step.s.segment[t]].kv;
  scratch.keys.resize(visible);
  scratch.scores.resize(visible);
  for (int64_t w = 0; w < visible; ++w) scratch.keys[w] = kv.RowBytes(PoolTag::kIndexerKv, layer, w);
  step.kernels.index_scores({step.s.index_q.data() + t * c.index_n_heads * c.index_head_dim,
                             step.s.index_w.data() + t * c.index_n_heads, scratch.keys.data(),
                             kv.layout().pool(PoolTag::kIndexerKv).row_type, scratch.scores.data(), c.index_n_heads, c.index_head_dim, visible});
  const float* score = scratch.scores.data();
  std::nth_element(selected.begin(), selected.begin() + c.index_topk, selected.end(), [score](int32_t a, int32_t b) {
    return score[a] != score[b] ? score[a] > score[b] : a < b;
  });
  selected.resize(c.index_topk);
  if (ChoiceTrace* choices = step.segments[step.s.segment[t]].choices)
    choices->Apply(ChoiceTrace::Kind::kEntries, layer, step.s.positions[t], selected);
  std::sort(selected.begin(), selected.end());
}

}  // namespace cachalot
