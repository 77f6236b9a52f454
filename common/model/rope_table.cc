#include "common/model/rope_table.h"

#include <cmath>

namespace cachalot {

void RopeTable::Fill(std::span<const int64_t> positions, float* cos, float* sin) const {
  for (int64_t position : positions)
    for (float inverse : inverse_) {
      const double angle = static_cast<float>(position) * inverse;
      *cos++ = static_cast<float>(std::cos(angle));
      *sin++ = static_cast<float>(std::sin(angle));
    }
}

}  // namespace cachalot
