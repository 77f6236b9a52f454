#pragma once
// The HTTP endpoint /metrics, on threads of its own.

#include <memory>
#include <string>

#include "common/base/status.h"
#include "common/metrics/registry.h"

namespace cachalot {

class MetricsServer {
 public:
  /// `listen`: "host:port" (host a numeric IPv4 address, port 0 takes a free one), or "" for none: then
  /// nothing runs and port() is 0. UNAVAILABLE when the address cannot be bound, INVALID_ARGUMENT when it is
  /// no address.
  static StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& listen,
                                                        const MetricsRegistry& registry);
  /// Ends after the scrapes in progress.
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  int port() const { return port_; }

 private:
  struct Impl;
  MetricsServer(std::unique_ptr<Impl> impl, int port);
  std::unique_ptr<Impl> impl_;
  int port_ = 0;
};

}  // namespace cachalot
