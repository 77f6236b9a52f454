#pragma once
// Shared-KV attention over the window and the compressed rows (model.md 3.4-3.8).

#include "common/model/step.h"

namespace cachalot {

/// y [T, D] = attention of the normed rows u [T, D]; appends to every KV pool of the layer.
void Attention(Step& step, int layer, const AttentionWeights& w, const float* u, float* y);

}  // namespace cachalot
