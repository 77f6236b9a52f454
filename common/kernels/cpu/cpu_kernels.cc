// SIMD kernels by Highway's run-time dispatch. In mode `exact` every sum over channels is one fixed tree of 16 virtual
// lanes: lane i adds elements i, i+16, ... by FMA in ascending order, then lanes are folded 8, 4, 2, 1. AVX-512 holds the
// lanes in one register, AVX2 in two: the same operations in the same order, so the same bits.

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/kernels/kernels.h"
#include "common/kernels/limits.h"
#include "common/kernels/ref/dequantise.h"

// Highway always compiles a fallback too; the emulated one has every operation that is used here. CpuKernels() never
// selects it, so GCC 12.2's wrong code for it (the reason for Highway's default) does not matter.
#define HWY_BROKEN_EMU128 0
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/kernels/cpu/cpu_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace cachalot::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr int kN = static_cast<int>(hn::MaxLanes(D()));
constexpr int kV = 16 / kN;  // registers that hold the 16 virtual lanes

struct Lanes {
  V v[kV];
};

HWY_INLINE Lanes Zero() {
  Lanes r;
  for (int i = 0; i < kV; ++i) r.v[i] = hn::Zero(D());
  return r;
}

HWY_INLINE Lanes Load(const float* p) {
  Lanes r;
  for (int i = 0; i < kV; ++i) r.v[i] = hn::LoadU(D(), p + i * kN);
  return r;
}

HWY_INLINE void MulAddTo(Lanes& acc, const Lanes& a, const Lanes& b) {
  for (int i = 0; i < kV; ++i) acc.v[i] = hn::MulAdd(a.v[i], b.v[i], acc.v[i]);
}

HWY_INLINE float Fold(const Lanes& acc) {
  HWY_ALIGN float x[16];
  for (int i = 0; i < kV; ++i) hn::Store(acc.v[i], D(), x + i * kN);
  const hn::FixedTag<float, 4> d4;
  const auto a = hn::Add(hn::Load(d4, x), hn::Load(d4, x + 8));
  const auto b = hn::Add(hn::Load(d4, x + 4), hn::Load(d4, x + 12));
  hn::Store(hn::Add(a, b), d4, x);
  return (x[0] + x[2]) + (x[1] + x[3]);
}

float Dot(const float* a, const float* b, int64_t n) {
  Lanes acc = Zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) MulAddTo(acc, Load(a + i), Load(b + i));
  if (i < n) {
    HWY_ALIGN float x[16] = {}, y[16] = {};
    std::copy(a + i, a + n, x);
    std::copy(b + i, b + n, y);
    MulAddTo(acc, Load(x), Load(y));
  }
  return Fold(acc);
}

// ------------------------------------------------------------------------------------- weights, 16 columns at a time

template <DType kType>
struct Decode;

template <>
struct Decode<DType::kF32> {
  static constexpr float kFactor = 1.f;
  static HWY_INLINE Lanes At(const uint8_t* row, int64_t k) {
    return Load(reinterpret_cast<const float*>(row) + k);
  }
};

template <>
struct Decode<DType::kBF16> {
  static constexpr float kFactor = 1.f;
  static HWY_INLINE Lanes At(const uint8_t* row, int64_t k) {
    Lanes r;
    const hn::RebindToUnsigned<D> du;
    const hn::Rebind<uint16_t, D> du16;
    const uint16_t* p = reinterpret_cast<const uint16_t*>(row) + k;
    for (int i = 0; i < kV; ++i) {
      const auto bits = hn::PromoteTo(du, hn::LoadU(du16, p + i * kN));
      r.v[i] = hn::BitCast(D(), hn::ShiftLeft<16>(bits));
    }
    return r;
  }
};

// e4m3 bits moved into a half are the value times 2^-8, subnormals included; the factor goes into the scale.
template <>
struct Decode<DType::kF8E4M3> {
  static constexpr float kFactor = 256.f;
  static HWY_INLINE Lanes At(const uint8_t* row, int64_t k) {
    Lanes r;
    const hn::Rebind<uint8_t, D> du8;
    const hn::Rebind<uint16_t, D> du16;
    const hn::Rebind<hwy::float16_t, D> df16;
    for (int i = 0; i < kV; ++i) {
      const auto bits = hn::PromoteTo(du16, hn::LoadU(du8, row + k + i * kN));
      const auto sign = hn::ShiftLeft<8>(hn::And(bits, hn::Set(du16, 0x80)));
      const auto rest = hn::ShiftLeft<7>(hn::And(bits, hn::Set(du16, 0x7F)));
      r.v[i] = hn::PromoteTo(D(), hn::BitCast(df16, hn::Or(sign, rest)));
    }
    return r;
  }
};

// e2m1 doubled is a small integer: one byte shuffle, then an exact conversion; the half goes into the scale.
template <>
struct Decode<DType::kFP4> {
  static constexpr float kFactor = .5f;
  static HWY_INLINE Lanes At(const uint8_t* row, int64_t k) {
    HWY_ALIGN static constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const hn::FixedTag<uint8_t, 16> d16;
    const hn::FixedTag<int8_t, 16> di16;
    const hn::FixedTag<uint8_t, 8> d8;
    const auto packed = hn::ZeroExtendVector(d16, hn::LoadU(d8, row + k / 2));
    const auto low = hn::And(packed, hn::Set(d16, 15));
    const auto high = hn::And(hn::ShiftRight<4>(packed), hn::Set(d16, 15));
    const auto index = hn::InterleaveLower(d16, low, high);
    const auto twice = hn::TableLookupBytes(hn::Load(di16, kTwice), hn::BitCast(di16, index));
    HWY_ALIGN int8_t bytes[16];
    hn::Store(twice, di16, bytes);
    Lanes r;
    const hn::RebindToSigned<D> di;
    const hn::Rebind<int8_t, D> db;
    for (int i = 0; i < kV; ++i)
      r.v[i] = hn::ConvertTo(D(), hn::PromoteTo(di, hn::LoadU(db, bytes + i * kN)));
    return r;
  }
};

/// out[0, padded 16) = W[row, :]; columns past the end are 0.
template <DType kType>
void DecodeRow(const MatrixView& w, int64_t row, float* out) {
  const uint8_t* bytes = w.row(row);
  int64_t k = 0;
  for (; k + 16 <= w.cols; k += 16) {
    const Lanes x = Decode<kType>::At(bytes, k);
    const V scale = hn::Set(D(), Decode<kType>::kFactor * ScaleAt(w, row, k));
    for (int i = 0; i < kV; ++i)
      hn::StoreU(w.scale.data ? hn::Mul(x.v[i], scale) : x.v[i], D(), out + k + i * kN);
  }
  if (k < w.cols) {
    std::fill(out + k, out + k + 16, 0.f);
    DequantiseRow(w, row, k, w.cols - k, out + k);
  }
}

void DecodeRowAny(const MatrixView& w, int64_t row, float* out) {
  switch (w.dtype) {
    case DType::kBF16:
      return DecodeRow<DType::kBF16>(w, row, out);
    case DType::kF8E4M3:
      return DecodeRow<DType::kF8E4M3>(w, row, out);
    case DType::kFP4:
      return DecodeRow<DType::kFP4>(w, row, out);
    default:
      return DecodeRow<DType::kF32>(w, row, out);
  }
}

// ------------------------------------------------------------------------------------------------------------- linear

constexpr int kOutputs = 4;  // weight rows per block

/// y[0..kTokens)[0..kOutputs) for weight rows decoded into `weights` [kOutputs, stride].
template <int kTokens>
HWY_INLINE void Block(const LinearParams& p, const float* weights, int64_t stride, int64_t t0, int64_t n0,
                      int outputs) {
  Lanes acc[kTokens][kOutputs];
  for (int t = 0; t < kTokens; ++t)
    for (int n = 0; n < kOutputs; ++n) acc[t][n] = Zero();
  const int64_t full = p.w.cols / 16 * 16;
  for (int64_t k = 0; k < full; k += 16) {
    Lanes w[kOutputs];
    for (int n = 0; n < kOutputs; ++n) w[n] = Load(weights + n * stride + k);
    for (int t = 0; t < kTokens; ++t) {
      const Lanes x = Load(p.x + (t0 + t) * p.x_stride + k);
      for (int n = 0; n < kOutputs; ++n) MulAddTo(acc[t][n], x, w[n]);
    }
  }
  if (full < p.w.cols) {
    for (int t = 0; t < kTokens; ++t) {
      HWY_ALIGN float tail[16] = {};
      const float* x = p.x + (t0 + t) * p.x_stride;
      std::copy(x + full, x + p.w.cols, tail);
      for (int n = 0; n < kOutputs; ++n) MulAddTo(acc[t][n], Load(tail), Load(weights + n * stride + full));
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int n = 0; n < outputs; ++n) p.y[(t0 + t) * p.y_stride + n0 + n] = Fold(acc[t][n]);
}

void LinearRows(const LinearParams& p, int64_t begin, int64_t end) {
  const int64_t stride = (p.w.cols + 15) / 16 * 16;
  static thread_local std::vector<float> scratch;
  if (scratch.size() < static_cast<size_t>(kOutputs * stride)) scratch.resize(kOutputs * stride);
  for (int64_t n0 = begin; n0 < end; n0 += kOutputs) {
    const int outputs = static_cast<int>(std::min<int64_t>(kOutputs, end - n0));
    for (int n = 0; n < outputs; ++n) DecodeRowAny(p.w, n0 + n, scratch.data() + n * stride);
    int64_t t = 0;
    for (; t + 4 <= p.tokens; t += 4) Block<4>(p, scratch.data(), stride, t, n0, outputs);
    for (; t < p.tokens; ++t) Block<1>(p, scratch.data(), stride, t, n0, outputs);
  }
}

void Linear(const LinearParams& p, ThreadPool& pool) {
  constexpr int64_t kWorkPerThread = 1 << 17;  // multiply-adds worth a wake-up
  const int64_t grain = std::max<int64_t>(kOutputs, kWorkPerThread / std::max<int64_t>(1, p.w.cols * p.tokens));
  const int64_t blocks = (p.w.rows + kOutputs - 1) / kOutputs;
  pool.ParallelFor(blocks, (grain + kOutputs - 1) / kOutputs, [&](int64_t begin, int64_t end) {
    LinearRows(p, begin * kOutputs, std::min(end * kOutputs, p.w.rows));
  });
}

// ------------------------------------------------------------------------------------------------------------- others

void RmsNorm(const RmsNormParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* x = p.x + t * p.width;
    float* y = p.y + t * p.width;
    const float inverse = 1.f / std::sqrt(Dot(x, x, p.width) / static_cast<float>(p.width) + p.eps);
    for (int64_t i = 0; i < p.width; ++i) y[i] = p.weight ? x[i] * inverse * p.weight[i] : x[i] * inverse;
  }
}

/// Dot with a key row of either type: the same tree as Dot on its exact fp32 values.
template <DType kType>
float DotKey(const float* q, const void* key, int64_t n) {
  const auto* bytes = static_cast<const uint8_t*>(key);
  Lanes acc = Zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) MulAddTo(acc, Load(q + i), Decode<kType>::At(bytes, i));
  if (i < n) {
    HWY_ALIGN float x[16] = {}, y[16] = {};
    std::copy(q + i, q + n, x);
    for (int64_t j = i; j < n; ++j)
      y[j - i] = kType == DType::kBF16 ? BF16ToFloat(static_cast<const uint16_t*>(key)[j])
                                       : static_cast<const float*>(key)[j];
    MulAddTo(acc, Load(x), Load(y));
  }
  return Fold(acc);
}

template <DType kType>
void IndexScoresOf(const IndexScoresParams& p) {
  for (int64_t s = 0; s < p.count; ++s) {
    float score = 0;
    for (int h = 0; h < p.heads; ++h)
      score += p.weight[h] * std::max(0.f, DotKey<kType>(p.q + h * p.width, p.keys[s], p.width));
    p.score[s] = score;
  }
}

void IndexScores(const IndexScoresParams& p) {
  p.key_type == DType::kBF16 ? IndexScoresOf<DType::kBF16>(p) : IndexScoresOf<DType::kF32>(p);
}

/// out += weight * key over the channels, each channel its own chain.
template <DType kType>
HWY_INLINE void Accumulate(float* out, const void* key, float weight, int width) {
  const V w = hn::Set(D(), weight);
  const auto* bytes = static_cast<const uint8_t*>(key);
  int i = 0;
  for (; i + 16 <= width; i += 16) {
    const Lanes x = Decode<kType>::At(bytes, i);
    for (int v = 0; v < kV; ++v)
      hn::StoreU(hn::MulAdd(w, x.v[v], hn::LoadU(D(), out + i + v * kN)), D(), out + i + v * kN);
  }
  for (; i < width; ++i) {
    const float x = kType == DType::kBF16 ? BF16ToFloat(static_cast<const uint16_t*>(key)[i])
                                          : static_cast<const float*>(key)[i];
    out[i] = std::fma(weight, x, out[i]);
  }
}

template <DType kType>
void AttendOf(const AttendParams& p) {
  for (int h = 0; h < p.heads; ++h) {
    const float* q = p.q + h * p.width;
    float* out = p.out + h * p.width;
    float top = p.sink[h];
    for (int64_t s = 0; s < p.count; ++s) {
      p.scratch[s] = DotKey<kType>(q, p.keys[s], p.width) * p.scale;
      top = std::max(top, p.scratch[s]);
    }
    float den = std::exp(p.sink[h] - top);
    std::fill(out, out + p.width, 0.f);
    for (int64_t s = 0; s < p.count; ++s) {
      const float e = std::exp(p.scratch[s] - top);
      den += e;
      Accumulate<kType>(out, p.keys[s], e, p.width);
    }
    for (int i = 0; i < p.width; ++i) out[i] /= den;
  }
}

void Attend(const AttendParams& p) {
  p.key_type == DType::kBF16 ? AttendOf<DType::kBF16>(p) : AttendOf<DType::kF32>(p);
}

void HcExpand(const HcExpandParams& p) {
  const int H = p.streams;
  for (int64_t t = 0; t < p.tokens; ++t) {
    float* h = p.h + t * H * p.hidden;
    const float* y = p.y + t * p.hidden;
    const float* post = p.post + t * H;
    const float* comb = p.comb + t * H * H;
    for (int64_t i = 0; i < p.hidden; ++i) {
      float old[kMaxStreams];
      for (int j = 0; j < H; ++j) old[j] = h[j * p.hidden + i];
      for (int k = 0; k < H; ++k) {
        float sum = post[k] * y[i];
        for (int j = 0; j < H; ++j) sum += comb[j * H + k] * old[j];
        h[k * p.hidden + i] = sum;
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cachalot::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cachalot::kernels {
namespace {

HWY_EXPORT(Linear);
HWY_EXPORT(RmsNorm);
HWY_EXPORT(IndexScores);
HWY_EXPORT(Attend);
HWY_EXPORT(HcExpand);

KernelTable MakeTable(NumericMode mode) {
  KernelTable table = RefKernels(mode);  // what is not worth SIMD yet is shared with ref
  table.name = "cpu";
  table.numerics_id = mode == NumericMode::kBf16 ? "cpu-bf16-16-lane-1" : "cpu-exact-16-lane-1";
  table.linear = [](const LinearParams& p, ThreadPool& pool) { HWY_DYNAMIC_DISPATCH(Linear)(p, pool); };
  table.rms_norm = [](const RmsNormParams& p) { HWY_DYNAMIC_DISPATCH(RmsNorm)(p); };
  table.index_scores = [](const IndexScoresParams& p) { HWY_DYNAMIC_DISPATCH(IndexScores)(p); };
  table.attend = [](const AttendParams& p) { HWY_DYNAMIC_DISPATCH(Attend)(p); };
  table.hc_expand = [](const HcExpandParams& p) { HWY_DYNAMIC_DISPATCH(HcExpand)(p); };
  return table;
}

}  // namespace

const KernelTable* CpuKernels(NumericMode mode) {
  static const KernelTable exact = MakeTable(NumericMode::kExact), bf16 = MakeTable(NumericMode::kBf16);
  static const bool supported = (hwy::SupportedTargets() & (HWY_AVX2 | HWY_AVX3)) != 0;
  if (!supported) return nullptr;
  return mode == NumericMode::kBf16 ? &bf16 : &exact;
}

}  // namespace cachalot::kernels
#endif  // HWY_ONCE
