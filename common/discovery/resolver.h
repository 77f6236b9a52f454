#pragma once
// The addresses of a name.

#include <functional>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

class Resolver {
 public:
  /// Numeric addresses without port, sorted, each once; at least one. Else NOT_FOUND (no such name, or it has
  /// no address), UNAVAILABLE (no server answers, or it fails) or CANCELLED (the resolver goes); the message has
  /// the name.
  using Done = std::function<void(StatusOr<std::vector<std::string>> addresses)>;

  virtual ~Resolver() = default;
  /// Any thread. `done` is called once, on a thread of the resolver's, or here.
  virtual void Resolve(const std::string& name, Done done) = 0;
};

}  // namespace cachalot
