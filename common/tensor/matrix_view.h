#pragma once
// A weight matrix in its stored format: y = x W^T, W [rows = out, cols = in], row-major, not owned.

#include <cstdint>
#include <string>

#include "common/tensor/dtype.h"

namespace cachalot {

/// Scales of a quantised matrix: one per `block_rows` x `block_cols` block, the last block of either axis may be
/// ragged. FP8: 128x128; FP4: 1x32 (model.md 7.2).
struct BlockScale {
  DType dtype = DType::kF8E8M0;  // kF8E8M0 or kF32
  const void* data = nullptr;    // [ceil(rows / block_rows), ceil(cols / block_cols)]
  int block_rows = 1, block_cols = 1;
};

struct MatrixView {
  DType dtype = DType::kF32;   // kF32, kBF16, kF8E4M3 or kFP4
  const void* data = nullptr;  // nullptr: this role does not own the tensor
  int64_t rows = 0, cols = 0;  // in elements (FP4: cols/2 bytes a row)
  BlockScale scale;            // used by kF8E4M3 and kFP4
  int64_t first_scaled_row = 0;  // row 0 of this view counts as this row in `scale`

  bool present() const { return data != nullptr; }
  int64_t row_bytes() const { return DTypeBytes(dtype, cols); }
  const uint8_t* row(int64_t r) const { return static_cast<const uint8_t*>(data) + r * row_bytes(); }
  /// Rows [first, first + count); a slice may begin inside a scale block.
  MatrixView RowSlice(int64_t first, int64_t count) const {
    MatrixView slice = *this;
    slice.data = row(first);
    slice.rows = count;
    slice.first_scaled_row += first;
    return slice;
  }
};

}  // namespace cachalot
