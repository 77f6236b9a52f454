#pragma once
// Where a server listens, as text.

#include <string>

#include "common/base/status.h"

namespace cachalot {

struct ListenAddress {
  std::string host;  // "" for a socket file
  int port = 0;      // 0: any free one
  std::string path;  // of a socket file

  bool is_unix() const { return !path.empty(); }
};

/// "host:port", "[v6]:port" or "unix:path". INVALID_ARGUMENT says what is wrong, without naming whose it is.
StatusOr<ListenAddress> ParseListenAddress(const std::string& text);

/// What clients of a server may be told that listens on `listen` and got `port` there.
std::string BoundAddress(const std::string& listen, int port);

}  // namespace cachalot
