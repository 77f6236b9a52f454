#include "common/model/attention.h"

#include <algorithm>
#include <cmath>

#include "common/model/compressor.h"
#include "common/model/indexer.h"

namespace cachalot {
namespace {

struct Rope {
  const float *cos, *sin;
};

Rope RopeOf(const Step& step, int layer) {
  const int table = step.config.layers[layer] == LayerKind::kWindow ? 0 : 1;
  return {step.s.cos[table].data(), step.s.sin[table].data()};
}

/// model.md 3.4: s.qr, s.q and s.kv of the step's tokens.
void QueryAndLatent(Step& step, const AttentionWeights& w, const Rope& rope, const float* u) {
  const ModelConfig& c = step.config;
  Scratch& s = step.s;
  const int64_t T = step.rows(), N = c.num_attention_heads, d = c.head_dim;
  float* qr = Room(s.qr, T * c.q_lora_rank);
  step.Linear(u, w.wq_a, qr);
  step.Norm(qr, w.q_norm, qr);
  float* q = Room(s.q, T * N * d);
  step.Linear(qr, w.wq_b, q);
  step.kernels.rms_norm({q, nullptr, q, T * N, d, c.rms_norm_eps});
  step.Round(q, T * N * d);
  step.kernels.rope({q, rope.cos, rope.sin, T, c.num_attention_heads, c.head_dim, c.rope_dim, false});
  step.Round(q, T * N * d);
  float* kv = Room(s.kv, T * d);
  step.Linear(u, w.wkv, kv);
  step.Norm(kv, w.kv_norm, kv);
  step.kernels.rope({kv, rope.cos, rope.sin, T, 1, c.head_dim, c.rope_dim, false});
  step.Round(kv, T * d);
  const DType type = step.kv_type();
  const int64_t row_bytes = DTypeBytes(type, d);
  if (static_cast<int64_t>(s.kv_rows.size()) < T * row_bytes) s.kv_rows.resize(T * row_bytes);
  for (int64_t t = 0; t < T; ++t) StoreRow(kv + t * d, d, type, s.kv_rows.data() + t * row_bytes);
}

struct QueryScratch {
  std::vector<const void*> keys;
  std::vector<float> scores;
  std::vector<int32_t> selected;
  IndexerScratch indexer;
};

/// The keys of row t in their fixed order: window rows by position, then compressed rows by index (model.md 3.5-3.7).
void CollectKeys(const Step& step, int layer, int64_t t, QueryScratch& scratch) {
  const ModelConfig& c = step.config;
  const int64_t p = step.s.positions[t], segment = step.s.segment[t], first = step.s.first_row[segment];
  SequenceKv& kv = *step.segments[segment].kv;
  const int64_t start = step.s.positions[first], row_bytes = DTypeBytes(step.kv_type(), c.head_dim);
  scratch.keys.clear();
  for (int64_t s = std::max<int64_t>(0, p - c.sliding_window + 1); s <= p; ++s)
    scratch.keys.push_back(s < start ? kv.RowBytes(PoolTag::kSwaKv, layer, s)
                                     : step.s.kv_rows.data() + (first + s - start) * row_bytes);
  if (c.layers[layer] == LayerKind::kCsa) {
    SelectEntries(step, layer, t, (p + 1) / c.ratio(layer), scratch.indexer, scratch.selected);
    for (int32_t entry : scratch.selected) scratch.keys.push_back(kv.RowBytes(PoolTag::kCsaKv, layer, entry));
  } else if (c.layers[layer] == LayerKind::kHca) {
    for (int64_t entry = 0; entry < (p + 1) / c.ratio(layer); ++entry)
      scratch.keys.push_back(kv.RowBytes(PoolTag::kHcaKv, layer, entry));
  }
}

/// model.md 3.8: s.o [T, N, d] of every query, not yet de-rotated.
void AttendAll(Step& step, int layer, const AttentionWeights& w) {
  const ModelConfig& c = step.config;
  const int64_t width = static_cast<int64_t>(c.num_attention_heads) * c.head_dim;
  float* o = Room(step.s.o, step.rows() * width);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
  step.threads.ParallelFor(step.rows(), 1, [&](int64_t begin, int64_t end) {
    static thread_local QueryScratch scratch;
    for (int64_t t = begin; t < end; ++t) {
      CollectKeys(step, layer, t, scratch);
      scratch.scores.resize(scratch.keys.size());
      step.kernels.attend({step.s.q.data() + t * width, scratch.keys.data(), step.kv_type(), w.sink.data(), o + t * width,
                           scratch.scores.data(), c.num_attention_heads, c.head_dim,
                           static_cast<int64_t>(scratch.keys.size()), scale});
    }
  });
  step.Round(o, step.rows() * width);
}

/// The chunk's rows enter the window ring only now: queries of the chunk may still have needed the rows they replace.
void KeepWindow(Step& step, int layer) {
  const int64_t ring = step.segments[0].kv->layout().pool(PoolTag::kSwaKv).rows_per_block;
  const int64_t row_bytes = DTypeBytes(step.kv_type(), step.config.head_dim);
  for (size_t i = 0; i < step.segments.size(); ++i) {
    const int64_t end = step.s.first_row[i + 1];
    for (int64_t t = std::max(step.s.first_row[i], end - ring); t < end; ++t)
      std::memcpy(step.segments[i].kv->RowBytes(PoolTag::kSwaKv, layer, step.s.positions[t]),
                  step.s.kv_rows.data() + t * row_bytes, row_bytes);
  }
}

/// model.md 3.8: de-rotation at the query position, grouped low-rank projection, output projection.
void ProjectOut(Step& step, const AttentionWeights& w, const Rope& rope, float* y) {
  const ModelConfig& c = step.config;
  Scratch& s = step.s;
  const int64_t T = step.rows(), G = c.o_groups, R = c.o_lora_rank;
  const int64_t width = static_cast<int64_t>(c.num_attention_heads) * c.head_dim;
  step.kernels.rope({s.o.data(), rope.cos, rope.sin, T, c.num_attention_heads, c.head_dim, c.rope_dim, true});
  step.Round(s.o.data(), T * width);
  float* low = Room(s.o_low, T * G * R);
  for (int64_t g = 0; g < G; ++g)
    step.kernels.linear({s.o.data() + g * (width / G), width, w.wo_a.RowSlice(g * R, R), low + g * R, G * R, T},
                        step.threads);
  step.Round(low, T * G * R);
  step.Linear(low, w.wo_b, y);
}

}  // namespace

void Attention(Step& step, int layer, const AttentionWeights& w, const float* u, float* y) {
  const ModelConfig& c = step.config;
  const Rope rope = RopeOf(step, layer);
  QueryAndLatent(step, w, rope, u);
  // Entries first: one that this step completes is visible at once, from its last token on (model.md 3.11).
  if (c.layers[layer] == LayerKind::kCsa) {
    Compress(step, layer, w.compressor, {PoolTag::kCsaState, PoolTag::kCsaKv, c.head_dim}, u, step.s.c, step.s.g);
    Compress(step, layer, w.indexer.compressor,
             {PoolTag::kIndexerState, PoolTag::kIndexerKv, c.index_head_dim}, u, step.s.index_c, step.s.index_g);
    IndexerQueries(step, w.indexer, u, step.s.qr.data());
  } else if (c.layers[layer] == LayerKind::kHca) {
    Compress(step, layer, w.compressor, {PoolTag::kHcaState, PoolTag::kHcaKv, c.head_dim}, u, step.s.c, step.s.g);
  }
  AttendAll(step, layer, w);
  KeepWindow(step, layer);
  ProjectOut(step, w, rope, y);
}

}  // namespace cachalot
