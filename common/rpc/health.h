#pragma once
// grpc.health.v1.Health on our own loops (gRPC's own implementation brings its own polling threads).

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "common/rpc/server.h"

namespace cachalot::rpc {

/// What the health service answers. Thread-safe. Services: "" (the server as a whole), "liveness" and
/// "readiness" exist from the start and do not serve; Set adds others.
class HealthState {
 public:
  HealthState();
  void Set(const std::string& service, bool serving);
  /// Nothing for a service that nobody has Set.
  std::optional<bool> Get(const std::string& service) const;
  /// For shutdown: nothing serves any more, Set is ignored, Watch streams end.
  void Close();
  bool closed() const;

 private:
  friend class HealthService;
  void SetListener(std::function<void()> listener);

  mutable std::mutex mutex_;
  std::map<std::string, bool> serving_;
  std::function<void()> listener_;
  bool closed_ = false;
};

/// Check: NOT_FOUND for an unknown service. Watch: the current state, then every change; SERVICE_UNKNOWN
/// until set. Register before Server::Start; `state` must outlive it, and it must outlive the server. One
/// service per state.
class HealthService {
 public:
  HealthService(Server* server, Loop* loop, HealthState* state);
  ~HealthService();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cachalot::rpc
