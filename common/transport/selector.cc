#include "common/transport/selector.h"

#include <algorithm>

namespace cachalot {
namespace {

/// "" when `c` will do.
std::string WhyNot(const Capabilities& c, std::span<const std::string> peer_offers,
                   const TransportNeed& need) {
  if (std::find(peer_offers.begin(), peer_offers.end(), c.name) == peer_offers.end())
    return "the peer has none";
  if (need.other_host && !c.crosses_hosts) return "it does not cross hosts";
  if (need.other_process && !c.crosses_processes) return "it does not cross processes";
  if (need.device_memory && !c.device_memory) return "it does not reach device memory";
  if (need.frame_bytes > c.max_frame_bytes)
    return "frames of " + std::to_string(need.frame_bytes) + " bytes, at most " +
           std::to_string(c.max_frame_bytes);
  return "";
}

}  // namespace

StatusOr<TransportChoice> SelectTransport(std::span<const Capabilities> ours,
                                          std::span<const std::string> peer_offers,
                                          const TransportNeed& need) {
  std::string refused;
  for (const Capabilities& c : ours) {
    const std::string why_not = WhyNot(c, peer_offers, need);
    if (why_not.empty())
      return TransportChoice{c.name, refused.empty() ? "the first choice" : "not " + refused};
    refused += (refused.empty() ? "" : ", ") + c.name + " (" + why_not + ")";
  }
  return FailedPrecondition("no transport fits: " + (refused.empty() ? "none is built in" : refused));
}

}  // namespace cachalot
