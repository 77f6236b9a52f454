#include "common/kernels/kernels.h"

namespace cachalot::kernels {

StatusOr<const KernelTable*> SelectKernels(std::string_view name) {
  if (name == "ref") return &RefKernels();
  if (name == "auto") return CpuKernels() ? CpuKernels() : &RefKernels();
  if (name != "cpu")
    return InvalidArgument("--kernels=" + std::string(name) + ": wanted one of auto, cpu, ref");
  if (!CpuKernels())
    return FailedPrecondition("--kernels=cpu needs a CPU with AVX2 and FMA; use --kernels=ref here");
  return CpuKernels();
}

}  // namespace cachalot::kernels
