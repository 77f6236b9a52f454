#pragma once
// Number formats of DeepSeek-V4 checkpoints (model.md 7.2) and their conversions, all exact.

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>

namespace cachalot {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8E4M3,  // e4m3fn: bias 7, max 448, no infinity, 0x7F and 0xFF NaN
  kF8E8M0,  // 2^(byte - 127), 255 NaN
  kFP4,     // two e2m1 a byte, low nibble = even column; stored as I8 by the release
  kI64,
  kI32,
  kU8,
};

std::string_view DTypeName(DType dtype);

/// Bytes of `count` elements (two FP4 a byte).
int64_t DTypeBytes(DType dtype, int64_t count);

inline float BF16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
float F16ToFloat(uint16_t bits);

/// Round to nearest, ties to even; NaN stays NaN, overflow becomes infinity.
inline uint16_t FloatToBF16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

/// 2^(bits - 127); NaN for 255; 0 gives the subnormal 2^-127.
inline float E8M0ToFloat(uint8_t bits) {
  if (bits == 0) return std::bit_cast<float>(uint32_t{1} << 22);
  if (bits == 255) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 23);
}

extern const std::array<float, 256> kE4M3ToFloat;
extern const std::array<float, 16> kE2M1ToFloat;

}  // namespace cachalot
