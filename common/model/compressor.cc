#include "common/model/compressor.h"

#include <algorithm>

#include "common/kernels/limits.h"

namespace cachalot {
namespace {

constexpr int kCsaRatio = 4, kMaxSlots = 128;

/// Entry `window` from the state ring: pool, norm, rope at the window's first position.
void Emit(Step& step, SequenceKv& kv, int layer, const CompressorWeights& w, const CompressorPools& pools, int ratio,
          int64_t window) {
  const float *c[kMaxSlots], *g[kMaxSlots];
  const int width = pools.width, coff = ratio == kCsaRatio ? 2 : 1;
  int slots = 0;
  const auto add = [&](int64_t position, int half) {
    const float* row = kv.Row(pools.state, layer, position);
    c[slots] = row + half * width;
    g[slots++] = row + coff * width + half * width;
  };
  if (coff == 2 && window > 0)  // overlap: the A half of the window before; entry 0 has none
    for (int64_t p = ratio * (window - 1); p < ratio * window; ++p) add(p, 0);
  for (int64_t p = ratio * window; p < ratio * (window + 1); ++p) add(p, coff - 1);

  float* entry = Room(step.s.entry, width);
  step.kernels.pool({c, g, entry, slots, width});
  step.Round(entry, width);
  step.kernels.rms_norm({entry, w.norm.data(), entry, 1, width, step.config.rms_norm_eps});
  step.Round(entry, width);
  float cos[kMaxRopeDim / 2], sin[kMaxRopeDim / 2];
  const int64_t position = ratio * window;
  step.rope_compress.Fill({&position, 1}, cos, sin);
  step.kernels.rope({entry, cos, sin, 1, 1, width, step.config.rope_dim, false});
  step.Round(entry, width);
  StoreRow(entry, width, kv.layout().pool(pools.entries).row_type, kv.RowBytes(pools.entries, layer, window));
}

}  // namespace

void Compress(Step& step, int layer, const CompressorWeights& w, const CompressorPools& pools, const float* u,
              std::vector<float>& c_buffer, std::vector<float>& g_buffer) {
  const int ratio = step.config.ratio(layer);
  const int64_t wide = w.wkv.rows;
  float* c = Room(c_buffer, step.rows() * wide);
  float* g = Room(g_buffer, step.rows() * wide);
  step.LinearF32(u, w.wkv, c);
  step.LinearF32(u, w.wgate, g);
  for (int64_t t = 0; t < step.rows(); ++t) {
    SequenceKv& kv = *step.segments[step.s.segment[t]].kv;
    const int64_t position = step.s.positions[t];
    float* row = kv.Row(pools.state, layer, position);
    const float* ape = w.ape.data() + position % ratio * wide;
    std::copy_n(c + t * wide, wide, row);
    for (int64_t i = 0; i < wide; ++i) row[wide + i] = g[t * wide + i] + ape[i];
    if ((position + 1) % ratio == 0) Emit(step, kv, layer, w, pools, ratio, position / ratio);
  }
}

}  // namespace cachalot
