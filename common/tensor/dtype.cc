#include "common/tensor/dtype.h"

#include <cmath>
#include <limits>

namespace cachalot {
namespace {

std::array<float, 256> MakeE4M3() {
  std::array<float, 256> table{};
  for (int i = 0; i < 256; ++i) {
    const int exponent = (i >> 3) & 15, mantissa = i & 7;
    float x = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                            : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((i & 127) == 127) x = std::numeric_limits<float>::quiet_NaN();
    table[i] = i & 128 ? -x : x;
  }
  return table;
}

}  // namespace

const std::array<float, 256> kE4M3ToFloat = MakeE4M3();
const std::array<float, 16> kE2M1ToFloat = {0.f,  .5f,  1.f,  1.5f,  2.f,  3.f,  4.f,  6.f,
                                            -0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kF8E8M0:
      return "F8_E8M0";
    case DType::kFP4:
      return "I8";
    case DType::kI64:
      return "I64";
    case DType::kI32:
      return "I32";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

int64_t DTypeBytes(DType dtype, int64_t count) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return count * 4;
    case DType::kF16:
    case DType::kBF16:
      return count * 2;
    case DType::kI64:
      return count * 8;
    case DType::kFP4:
      return (count + 1) / 2;
    case DType::kF8E4M3:
    case DType::kF8E8M0:
    case DType::kU8:
      return count;
  }
  return 0;
}

float F16ToFloat(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  float x;
  if (exponent == 31) {
    x = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    x = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    x = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return bits & 0x8000 ? -x : x;
}

}  // namespace cachalot
