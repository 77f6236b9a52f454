#pragma once
// Where members of a role are looked for: at an address, or wherever a name leads (docs/architecture.md).

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

struct Seed {
  std::string text;     // as it was given
  std::string address;  // host:port or any gRPC target; "" when it is a name
  std::string name;     // every address of this name is a member ...
  int port = 0;         // ... at this port

  bool dns() const { return !name.empty(); }
};

/// HOST:PORT, or a target of one of gRPC's own forms (unix:PATH). INVALID_ARGUMENT for anything else.
Status CheckAddress(const std::string& text);

/// "dns:NAME:PORT" is a name, everything else an address. INVALID_ARGUMENT for either without a port, or what
/// gRPC would resolve by itself (dns:///…): it would take a name's addresses for one member.
StatusOr<Seed> ParseSeed(const std::string& text);
StatusOr<std::vector<Seed>> ParseSeeds(const std::vector<std::string>& texts);

/// "10.0.0.7:7300", "[fd00::7]:7300".
std::string JoinHostPort(const std::string& host, int port);

}  // namespace cachalot
