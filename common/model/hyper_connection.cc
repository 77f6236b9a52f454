#include "common/model/hyper_connection.h"

#include <algorithm>

namespace cachalot {

void HcBefore(Step& step, const HyperConnectionWeights& w) {
  const ModelConfig& c = step.config;
  Scratch& s = step.s;
  const int64_t T = step.rows(), H = c.hc_mult, flat = H * c.hidden_size;
  float* normed = Room(s.h_normed, T * flat);
  float* mix = Room(s.mix, T * c.hc_mix());
  step.kernels.rms_norm({s.h.data(), nullptr, normed, T, flat, c.rms_norm_eps});
  step.LinearF32(normed, w.fn, mix);
  step.kernels.hc_split({mix, w.scale.data(), w.base.data(), Room(s.pre, T * H), Room(s.post, T * H),
                         Room(s.comb, T * H * H), T, c.hc_mult, c.hc_sinkhorn_iters, c.hc_eps});
  step.kernels.hc_collapse({s.h.data(), s.pre.data(), Room(s.x, T * c.hidden_size), T, c.hidden_size, c.hc_mult});
  step.Round(s.x.data(), T * c.hidden_size);
}

void HcAfter(Step& step, const float* y) {
  const ModelConfig& c = step.config;
  Scratch& s = step.s;
  step.kernels.hc_expand(
      {s.h.data(), y, s.post.data(), s.comb.data(), step.rows(), c.hidden_size, c.hc_mult});
  step.Round(s.h.data(), step.rows() * c.hc_mult * c.hidden_size);
}

void HcHead(Step& step, const ModelWeights& w) {
  const ModelConfig& c = step.config;
  Scratch& s = step.s;
  const int64_t R = static_cast<int64_t>(s.logit_rows.size()), H = c.hc_mult, D = c.hidden_size, flat = H * D;
  float* h = Room(s.head_h, R * flat);
  for (int64_t i = 0; i < R; ++i) std::copy_n(s.h.data() + s.logit_rows[i] * flat, flat, h + i * flat);
  float* normed = Room(s.h_normed, R * flat);
  float* mix = Room(s.mix, R * H);
  step.kernels.rms_norm({h, nullptr, normed, R, flat, c.rms_norm_eps});
  step.kernels.linear({normed, flat, w.hc_head.fn, mix, H, R}, step.threads);
  step.kernels.hc_head_split(
      {mix, w.hc_head.scale.data(), w.hc_head.base.data(), Room(s.pre, R * H), R, c.hc_mult, c.hc_eps});
  float* x = Room(s.head_x, R * D);
  step.kernels.hc_collapse({h, s.pre.data(), x, R, D, c.hc_mult});
  step.Round(x, R * D);
  float* hidden = Room(s.hidden, R * D);
  step.kernels.rms_norm({x, w.norm.data(), hidden, R, D, c.rms_norm_eps});
  step.Round(hidden, R * D);
  step.kernels.linear({hidden, D, w.head, Room(s.logits, R * c.vocab_size), c.vocab_size, R}, step.threads);
}

}  // namespace cachalot
