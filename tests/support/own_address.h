#pragma once
// Where several servers must share one port, so that none of them can take a free one.

#include <unistd.h>

#include <string>

namespace cachalot::testing {

/// An address that no other test process has: all of 127/8 is loopback. `host`: 1 to 254.
inline std::string OwnHost(int host) {
  const auto pid = static_cast<unsigned>(getpid());
  return "127." + std::to_string(1 + (pid >> 8) % 254) + "." + std::to_string(pid % 256) + "." + std::to_string(host);
}

/// Below the ports that the system gives to those who ask for any.
inline constexpr int kOwnPort = 9464;

inline std::string OwnAddress(int host) { return OwnHost(host) + ":" + std::to_string(kOwnPort); }

}  // namespace cachalot::testing
