#pragma once
// The identity that all workers of a router must share. The first worker that answers sets it; the others are
// measured against it, so that KV never moves between workers that would compute different bits.

#include <optional>
#include <string>

#include "common/cluster/compat.h"

namespace cachalot {

class ClusterView {
 public:
  /// OK when `compat` is the cluster's, or the first one seen. FAILED_PRECONDITION names the field that
  /// differs.
  Status Admit(const v1::Compat& compat, const std::string& peer) {
    if (!compat_) compat_ = compat;
    return CheckCompat(*compat_, compat, peer);
  }
  const std::optional<v1::Compat>& compat() const { return compat_; }

 private:
  std::optional<v1::Compat> compat_;
};

}  // namespace cachalot
