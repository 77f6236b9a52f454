#pragma once
// What kernels and model hold on the stack, so that a config may not have more.

namespace cachalot {

inline constexpr int kMaxStreams = 8;    ///< residual streams (hc_mult)
inline constexpr int kMaxRopeDim = 512;  ///< channels that rotate

}  // namespace cachalot
