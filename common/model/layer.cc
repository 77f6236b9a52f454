#include "common/model/layer.h"

#include "common/model/attention.h"
#include "common/model/hyper_connection.h"
#include "common/model/moe.h"

namespace cachalot {

Status RunLayer(Step& step, int layer, const LayerWeights& w) {
  Scratch& s = step.s;
  const int64_t size = step.rows() * step.config.hidden_size;
  float* u = Room(s.u, size);
  float* y = Room(s.y, size);

  HcBefore(step, w.hc_attn);
  step.Norm(s.x.data(), w.attn_norm, u);
  Attention(step, layer, w.attn, u, y);
  HcAfter(step, y);

  HcBefore(step, w.hc_ffn);
  step.Norm(s.x.data(), w.ffn_norm, u);
  RETURN_IF_ERROR(Moe(step, layer, w.moe, u, y));
  HcAfter(step, y);
  return OkStatus();
}

}  // namespace cachalot
