#pragma once

#include "common/tensor/matrix_view.h"

namespace cachalot {

/// One expert of an MoE layer (model.md 3.9); absent views where a role does not own it.
struct ExpertMatrices {
  MatrixView w1, w3;  // [F, D] gate and up
  MatrixView w2;      // [D, F] down
};

}  // namespace cachalot
