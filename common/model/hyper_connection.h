#pragma once
// Manifold-constrained hyper-connections around a sub-layer (model.md 3.2).

#include "common/model/step.h"

namespace cachalot {

/// Steps 1-4: s.x [T, D] = the streams collapsed; s.post and s.comb are kept for HcAfter.
void HcBefore(Step& step, const HyperConnectionWeights& w);

/// Step 6: the streams s.h take in y [T, D].
void HcAfter(Step& step, const float* y);

/// Hyper head, final norm and logits of the rows s.logit_rows (model.md 3.10): s.logits [R, vocab].
void HcHead(Step& step, const ModelWeights& w);

}  // namespace cachalot
