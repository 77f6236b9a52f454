#pragma once
// The operations of a DeepSeek-V4 forward pass, one struct of arguments each. Pointers are fp32 unless a view says
// otherwise; T = rows (tokens), D = hidden size, H = streams, N = heads, d = head_dim. Nothing is owned here.

#include <cstdint>

#include "common/tensor/matrix_view.h"

namespace cachalot::kernels {

/// y = x W^T (model.md 3.0), the weights taken as their exact fp32 values.
struct LinearParams {
  const float* x;     // [T, cols], row stride x_stride
  int64_t x_stride;
  MatrixView w;       // [rows, cols]
  float* y;           // [T, rows], row stride y_stride
  int64_t y_stride;
  int64_t tokens;     // T
};

/// y = x * rsqrt(mean(x^2) + eps) * weight (model.md 3.0); without weight for nullptr. x may be y.
struct RmsNormParams {
  const float* x;       // [T, width]
  const float* weight;  // [width] or nullptr
  float* y;             // [T, width]
  int64_t tokens, width;
  float eps;
};

/// Steps 2 and 3 of model.md 3.2 on m = fn . unit_rms(h).
struct HcSplitParams {
  const float* m;      // [T, (2+H)*H]
  const float* scale;  // [3]
  const float* base;   // [(2+H)*H]
  float* pre;          // [T, H]
  float* post;         // [T, H]
  float* comb;         // [T, H, H]
  int64_t tokens;
  int streams, sinkhorn_iters;
  float eps;
};

/// pre of the hyper head (model.md 3.10): sigmoid(m * scale + base) + eps.
struct HcHeadSplitParams {
  const float* m;      // [T, H]
  const float* scale;  // [1]
  const float* base;   // [H]
  float* pre;          // [T, H]
  int64_t tokens;
  int streams;
  float eps;
};

/// x = sum_j pre[j] h[j] (model.md 3.2 step 4).
struct HcCollapseParams {
  const float* h;    // [T, H, D]
  const float* pre;  // [T, H]
  float* x;          // [T, D]
  int64_t tokens, hidden;
  int streams;
};

/// h'[k] = post[k] y + sum_j comb[j][k] h[j] (model.md 3.2 step 6), in place: the sum runs over the FIRST index.
struct HcExpandParams {
  float* h;           // [T, H, D]
  const float* y;     // [T, D]
  const float* post;  // [T, H]
  const float* comb;  // [T, H, H]
  int64_t tokens, hidden;
  int streams;
};

/// Turns the last rope_dim channels of every head in neighbouring pairs (model.md 3.4); inverse: by -angle (3.8).
struct RopeParams {
  float* x;          // [T, heads, width]
  const float* cos;  // [T, rope_dim/2]
  const float* sin;  // [T, rope_dim/2]
  int64_t tokens;
  int heads, width, rope_dim;
  bool inverse;
};

/// One compressed entry before its norm (model.md 3.6): per channel, softmax over the gates of the slots, weighted sum.
struct PoolParams {
  const float* const* c;  // [slots] rows of [width]
  const float* const* g;  // [slots] rows of [width], ape added
  float* out;             // [width]
  int slots, width;
};

/// score[s] = sum_h weight[h] * relu(q_h . key_s) (model.md 3.7) of one query.
struct IndexScoresParams {
  const float* q;            // [heads, width]
  const float* weight;       // [heads], scaled
  const void* const* keys;   // [count] rows of [width] of key_type
  DType key_type;            // kF32 or kBF16
  float* score;              // [count]
  int heads, width;
  int64_t count;
};

/// Attention of one query over its key rows, K = V, with a sink in the denominator (model.md 3.8).
struct AttendParams {
  const float* q;            // [heads, width]
  const void* const* keys;   // [count] rows of [width] of key_type, in a fixed order
  DType key_type;            // kF32 or kBF16
  const float* sink;         // [heads]
  float* out;                // [heads, width]
  float* scratch;            // [count]
  int heads, width;
  int64_t count;
  float scale;
};

/// t = silu(min(gate, limit)) * clamp(up, -limit, limit) * weight (model.md 3.9).
struct SwigluParams {
  const float* gate;    // [T, width]
  const float* up;      // [T, width]
  const float* weight;  // [T] or nullptr for 1
  float* out;           // [T, width]; may be gate or up
  int64_t tokens, width;
  float limit;
};

/// score = sqrt(softplus(logit)) (model.md 3.9), in place.
struct RouterScoresParams {
  float* x;  // [count]
  int64_t count;
};

}  // namespace cachalot::kernels
