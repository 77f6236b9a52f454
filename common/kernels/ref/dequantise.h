#pragma once
// Exact fp32 values of a stored weight row.

#include "common/tensor/matrix_view.h"

namespace cachalot::kernels {

/// out[i] = W[row, begin + i] for i in [0, count).
void DequantiseRow(const MatrixView& w, int64_t row, int64_t begin, int64_t count, float* out);

/// The scale of W[row, col]; 1 for formats without one.
float ScaleAt(const MatrixView& w, int64_t row, int64_t col);

}  // namespace cachalot::kernels
