#pragma once
// Which transport to use with a peer: a pure choice with its reason.

#include <span>
#include <string>

#include "common/transport/transport.h"

namespace cachalot {

/// What the connection has to do.
struct TransportNeed {
  bool other_process = false, other_host = false;
  bool device_memory = false;  // the payload is in a GPU's memory
  size_t frame_bytes = 0;      // the largest frame
};

struct TransportChoice {
  std::string name;
  std::string reason;  // why this one, and why none of those before it
};

/// The first of `ours`, in order of preference, that the peer offers by name and that meets the need.
/// FAILED_PRECONDITION says of each why not.
StatusOr<TransportChoice> SelectTransport(std::span<const Capabilities> ours,
                                          std::span<const std::string> peer_offers,
                                          const TransportNeed& need);

}  // namespace cachalot
