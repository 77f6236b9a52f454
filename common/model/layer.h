#pragma once

#include "common/model/step.h"

namespace cachalot {

/// One layer over the step's residual streams s.h (model.md 3.3). Fails only where the experts fail.
Status RunLayer(Step& step, int layer, const LayerWeights& w);

}  // namespace cachalot
