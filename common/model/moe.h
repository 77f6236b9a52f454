#pragma once
// Router, routed experts through the back end, shared expert (model.md 3.9).

#include "common/model/step.h"

namespace cachalot {

/// y [T, D] = MoE of the normed rows u [T, D]. The shared expert runs while the routed ones are away.
Status Moe(Step& step, int layer, const MoeWeights& w, const float* u, float* y);

}  // namespace cachalot
