// Plain loops that read like docs/model.md; sums in double. Every other back end is tested against these.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/kernels/kernels.h"
#include "common/kernels/ref/dequantise.h"

namespace cachalot::kernels {
namespace {

double Dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

float At(const void* row, DType type, int64_t i) {
  return type == DType::kBF16 ? BF16ToFloat(static_cast<const uint16_t*>(row)[i]) : static_cast<const float*>(row)[i];
}

double DotKey(const float* q, const void* key, DType type, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(q[i]) * At(key, type, i);
  return sum;
}

void RoundToNothing(float*, int64_t) {}

void RoundToBf16(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = BF16ToFloat(FloatToBF16(x[i]));
}

float Sigmoid(float x) {
  const float e = std::exp(-std::fabs(x));
  return (x >= 0 ? 1.f : e) / (1.f + e);
}

void Linear(const LinearParams& p, ThreadPool& pool) {
  pool.ParallelFor(p.w.rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> row(p.w.cols);
    for (int64_t n = begin; n < end; ++n) {
      DequantiseRow(p.w, n, 0, p.w.cols, row.data());
      for (int64_t t = 0; t < p.tokens; ++t)
        p.y[t * p.y_stride + n] = static_cast<float>(Dot(p.x + t * p.x_stride, row.data(), p.w.cols));
    }
  });
}

void RmsNorm(const RmsNormParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* x = p.x + t * p.width;
    float* y = p.y + t * p.width;
    const float inverse = static_cast<float>(1.0 / std::sqrt(Dot(x, x, p.width) / p.width + p.eps));
    for (int64_t i = 0; i < p.width; ++i) y[i] = p.weight ? x[i] * inverse * p.weight[i] : x[i] * inverse;
  }
}

void NormaliseRows(float* c, int n, float eps) {
  for (int j = 0; j < n; ++j) {
    float sum = 0;
    for (int k = 0; k < n; ++k) sum += c[j * n + k];
    for (int k = 0; k < n; ++k) c[j * n + k] /= sum + eps;
  }
}

void NormaliseColumns(float* c, int n, float eps) {
  for (int k = 0; k < n; ++k) {
    float sum = 0;
    for (int j = 0; j < n; ++j) sum += c[j * n + k];
    for (int j = 0; j < n; ++j) c[j * n + k] /= sum + eps;
  }
}

void HcSplit(const HcSplitParams& p) {
  const int H = p.streams, mix = (2 + H) * H;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* m = p.m + t * mix;
    float* c = p.comb + t * H * H;
    for (int j = 0; j < H; ++j) {
      p.pre[t * H + j] = Sigmoid(m[j] * p.scale[0] + p.base[j]) + p.eps;
      p.post[t * H + j] = 2.f * Sigmoid(m[H + j] * p.scale[1] + p.base[H + j]);
    }
    for (int i = 0; i < H * H; ++i) c[i] = m[2 * H + i] * p.scale[2] + p.base[2 * H + i];
    for (int j = 0; j < H; ++j) {
      float* row = c + j * H;
      const float top = *std::max_element(row, row + H);
      float sum = 0;
      for (int k = 0; k < H; ++k) sum += row[k] = std::exp(row[k] - top);
      for (int k = 0; k < H; ++k) row[k] = row[k] / sum + p.eps;
    }
    NormaliseColumns(c, H, p.eps);
    for (int i = 1; i < p.sinkhorn_iters; ++i) {
      NormaliseRows(c, H, p.eps);
      NormaliseColumns(c, H, p.eps);
    }
  }
}

void HcHeadSplit(const HcHeadSplitParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.streams; ++j)
      p.pre[t * p.streams + j] = Sigmoid(p.m[t * p.streams + j] * p.scale[0] + p.base[j]) + p.eps;
}

void HcCollapse(const HcCollapseParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* h = p.h + t * p.streams * p.hidden;
    for (int64_t i = 0; i < p.hidden; ++i) {
      float sum = p.pre[t * p.streams] * h[i];
      for (int j = 1; j < p.streams; ++j) sum += p.pre[t * p.streams + j] * h[j * p.hidden + i];
      p.x[t * p.hidden + i] = sum;
    }
  }
}

void HcExpand(const HcExpandParams& p) {
  const int H = p.streams;
  std::vector<float> old(H);
  for (int64_t t = 0; t < p.tokens; ++t) {
    float* h = p.h + t * H * p.hidden;
    const float* post = p.post + t * H;
    const float* comb = p.comb + t * H * H;
    for (int64_t i = 0; i < p.hidden; ++i) {
      for (int j = 0; j < H; ++j) old[j] = h[j * p.hidden + i];
      for (int k = 0; k < H; ++k) {
        float sum = post[k] * p.y[t * p.hidden + i];
        for (int j = 0; j < H; ++j) sum += comb[j * H + k] * old[j];
        h[k * p.hidden + i] = sum;
      }
    }
  }
}

void Rope(const RopeParams& p) {
  const int half = p.rope_dim / 2;
  for (int64_t t = 0; t < p.tokens; ++t)
    for (int head = 0; head < p.heads; ++head) {
      float* x = p.x + (t * p.heads + head) * p.width + p.width - p.rope_dim;
      for (int i = 0; i < half; ++i) {
        const float cos = p.cos[t * half + i], sin = p.inverse ? -p.sin[t * half + i] : p.sin[t * half + i];
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos - b * sin;
        x[2 * i + 1] = a * sin + b * cos;
      }
    }
}

void Pool(const PoolParams& p) {
  for (int i = 0; i < p.width; ++i) {
    float top = -std::numeric_limits<float>::infinity();
    for (int s = 0; s < p.slots; ++s) top = std::max(top, p.g[s][i]);
    double sum = 0, weighted = 0;
    for (int s = 0; s < p.slots; ++s) {
      const double e = std::exp(p.g[s][i] - top);
      sum += e;
      weighted += e * p.c[s][i];
    }
    p.out[i] = static_cast<float>(weighted / sum);
  }
}

void IndexScores(const IndexScoresParams& p) {
  for (int64_t s = 0; s < p.count; ++s) {
    double score = 0;
    for (int h = 0; h < p.heads; ++h)
      score += p.weight[h] * std::max(0.0, DotKey(p.q + h * p.width, p.keys[s], p.key_type, p.width));
    p.score[s] = static_cast<float>(score);
  }
}

void Attend(const AttendParams& p) {
  std::vector<double> sum(p.width);
  for (int h = 0; h < p.heads; ++h) {
    const float* q = p.q + h * p.width;
    float top = p.sink[h];
    for (int64_t s = 0; s < p.count; ++s) {
      p.scratch[s] = static_cast<float>(DotKey(q, p.keys[s], p.key_type, p.width)) * p.scale;
      top = std::max(top, p.scratch[s]);
    }
    double den = std::exp(p.sink[h] - top);
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t s = 0; s < p.count; ++s) {
      const double e = std::exp(p.scratch[s] - top);
      den += e;
      for (int i = 0; i < p.width; ++i) sum[i] += e * At(p.keys[s], p.key_type, i);
    }
    for (int i = 0; i < p.width; ++i) p.out[h * p.width + i] = static_cast<float>(sum[i] / den);
  }
}

void Swiglu(const SwigluParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t)
    for (int64_t i = t * p.width; i < (t + 1) * p.width; ++i) {
      const float gate = std::min(p.gate[i], p.limit), up = std::clamp(p.up[i], -p.limit, p.limit);
      const float value = gate * Sigmoid(gate) * up;
      p.out[i] = p.weight ? value * p.weight[t] : value;
    }
}

void RouterScores(const RouterScoresParams& p) {
  for (int64_t i = 0; i < p.count; ++i)
    p.x[i] = std::sqrt(std::max(p.x[i], 0.f) + std::log1p(std::exp(-std::fabs(p.x[i]))));
}

}  // namespace

const KernelTable& RefKernels(NumericMode mode) {
  static const KernelTable exact = {"ref",      "ref-double-1", NumericMode::kExact, RoundToNothing, Linear, RmsNorm,
                                    HcSplit,    HcHeadSplit,    HcCollapse,          HcExpand,       Rope,   Pool,
                                    IndexScores, Attend,        Swiglu,              RouterScores};
  static const KernelTable bf16 = [] {
    KernelTable table = exact;
    table.numerics_id = "ref-double-bf16-1";
    table.mode = NumericMode::kBf16;
    table.round = RoundToBf16;
    return table;
  }();
  return mode == NumericMode::kBf16 ? bf16 : exact;
}

}  // namespace cachalot::kernels
