#pragma once
// One table of operations per back end. All keep batch invariance (docs/numerics.md): the arithmetic of a row does
// not depend on how many rows there are, on the thread count or on what runs beside it.

#include <string>
#include <string_view>

#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/kernels/params.h"

namespace cachalot::kernels {

/// What a forward pass rounds (model.md 8.4). kExact: nothing, all fp32. kBf16: matrix products take and give bf16 and
/// accumulate in fp32; norms, hyper-connections, router, compressor, softmax, RoPE tables, indexer scores and the head
/// compute in fp32. Weights are their exact stored values in both.
enum class NumericMode : uint8_t { kExact, kBf16 };
std::string_view ModeName(NumericMode mode);  // "exact", "bf16"

struct KernelTable {
  const char* name;  // "ref", "cpu"
  /// Workers of equal numerics id give identical bits.
  const char* numerics_id;
  NumericMode mode;
  /// Rounds `count` values to what the mode keeps between operations: nothing, or bf16 (nearest even).
  void (*round)(float* x, int64_t count);
  void (*linear)(const LinearParams&, ThreadPool&);
  void (*rms_norm)(const RmsNormParams&);
  void (*hc_split)(const HcSplitParams&);
  void (*hc_head_split)(const HcHeadSplitParams&);
  void (*hc_collapse)(const HcCollapseParams&);
  void (*hc_expand)(const HcExpandParams&);
  void (*rope)(const RopeParams&);
  void (*pool)(const PoolParams&);
  void (*index_scores)(const IndexScoresParams&);
  void (*attend)(const AttendParams&);
  void (*swiglu)(const SwigluParams&);
  void (*router_scores)(const RouterScoresParams&);
};

/// Plain loops with double accumulators: the oracle of every other back end.
const KernelTable& RefKernels(NumericMode mode = NumericMode::kExact);

/// SIMD by run-time dispatch (AVX2 or AVX-512, same bits on both). Null where the CPU has neither.
const KernelTable* CpuKernels(NumericMode mode = NumericMode::kExact);

/// `name`: "auto" (the fastest present), "ref" or "cpu"; `mode`: "exact" or "bf16". INVALID_ARGUMENT for another word,
/// FAILED_PRECONDITION for a back end that this machine cannot run.
StatusOr<const KernelTable*> SelectKernels(std::string_view name, std::string_view mode = "exact");

}  // namespace cachalot::kernels
