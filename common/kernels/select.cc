#include "common/kernels/kernels.h"

namespace cachalot::kernels {

std::string_view ModeName(NumericMode mode) { return mode == NumericMode::kBf16 ? "bf16" : "exact"; }

StatusOr<const KernelTable*> SelectKernels(std::string_view name, std::string_view mode_name) {
  if (mode_name != "exact" && mode_name != "bf16")
    return InvalidArgument("--mode=" + std::string(mode_name) + ": wanted exact or bf16");
  const NumericMode mode = mode_name == "bf16" ? NumericMode::kBf16 : NumericMode::kExact;
  if (name == "ref") return &RefKernels(mode);
  if (name == "auto") return CpuKernels(mode) ? CpuKernels(mode) : &RefKernels(mode);
  if (name != "cpu")
    return InvalidArgument("--kernels=" + std::string(name) + ": wanted one of auto, cpu, ref");
  if (!CpuKernels(mode))
    return FailedPrecondition("--kernels=cpu needs a CPU with AVX2 and FMA; use --kernels=ref here");
  return CpuKernels(mode);
}

}  // namespace cachalot::kernels
