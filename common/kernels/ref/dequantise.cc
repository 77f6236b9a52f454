#include "common/kernels/ref/dequantise.h"

#include <algorithm>
#include <cstring>

#include "common/base/check.h"

namespace cachalot::kernels {

namespace {

float Element(DType dtype, const uint8_t* row, int64_t col) {
  if (dtype == DType::kF8E4M3) return kE4M3ToFloat[row[col]];
  const uint8_t pair = row[col / 2];
  return kE2M1ToFloat[col % 2 ? pair >> 4 : pair & 15];
}

}  // namespace

float ScaleAt(const MatrixView& w, int64_t row, int64_t col) {
  if (!w.scale.data) return 1.f;
  const int64_t stride = (w.cols + w.scale.block_cols - 1) / w.scale.block_cols;
  const int64_t at = (w.first_scaled_row + row) / w.scale.block_rows * stride + col / w.scale.block_cols;
  if (w.scale.dtype == DType::kF32) return static_cast<const float*>(w.scale.data)[at];
  return E8M0ToFloat(static_cast<const uint8_t*>(w.scale.data)[at]);
}

void DequantiseRow(const MatrixView& w, int64_t row, int64_t begin, int64_t count, float* out) {
  const uint8_t* bytes = w.row(row);
  switch (w.dtype) {
    case DType::kF32:
      std::memcpy(out, bytes + begin * 4, count * 4);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, bytes + (begin + i) * 2, 2);
        out[i] = BF16ToFloat(bits);
      }
      return;
    case DType::kF8E4M3:
    case DType::kFP4:
      // One scale holds for the rest of its block.
      for (int64_t i = 0; i < count;) {
        const int64_t col = begin + i;
        const int64_t end = std::min(count, i + w.scale.block_cols - col % w.scale.block_cols);
        const float scale = ScaleAt(w, row, col);
        for (; i < end; ++i) out[i] = Element(w.dtype, bytes, begin + i) * scale;
      }
      return;
    default:
      CHECK_MSG(false, "no matrix is stored as " + std::string(DTypeName(w.dtype)));
  }
}

}  // namespace cachalot::kernels
