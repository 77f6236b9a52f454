#include "common/metrics/server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "common/metrics/registry_impl.h"
#include "prometheus/exposer.h"

namespace cachalot {
namespace {

// civetweb reports only that it failed, so the address is tried first for the system's reason. Numeric hosts only.
Status Probe(const std::string& listen) {
  const std::string what = "cannot serve metrics on " + listen + ": ";
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos || colon + 1 == listen.size()) return InvalidArgument(what + "expected host:port");
  std::string host = listen.substr(0, colon);
  int port = 0;
  for (const char digit : listen.substr(colon + 1)) {
    if (digit < '0' || digit > '9' || (port = port * 10 + digit - '0') > 65535) {
      return InvalidArgument(what + "expected a port from 0 to 65535");
    }
  }
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  v4.sin_family = AF_INET;
  v6.sin6_family = AF_INET6;
  v4.sin_port = v6.sin6_port = htons(static_cast<uint16_t>(port));
  const bool known = bracketed ? inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1
                               : inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1;
  if (!known) return InvalidArgument(what + "the host must be a numeric address");
  const int fd = socket(bracketed ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const sockaddr* address = bracketed ? reinterpret_cast<sockaddr*>(&v6) : reinterpret_cast<sockaddr*>(&v4);
  const bool usable = fd >= 0 && bind(fd, address, bracketed ? sizeof(v6) : sizeof(v4)) == 0 && ::listen(fd, 1) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  return usable ? OkStatus() : Unavailable(what + std::strerror(error));
}

}  // namespace

struct MetricsServer::Impl {
  std::shared_ptr<prometheus::Collectable> collectable;  // the exposer holds only a weak reference
  std::unique_ptr<prometheus::Exposer> exposer;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl, int port) : impl_(std::move(impl)), port_(port) {}
MetricsServer::~MetricsServer() = default;

StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& listen,
                                                              const MetricsRegistry& registry) {
  auto impl = std::make_unique<Impl>();
  if (listen.empty()) return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl), 0));
  RETURN_IF_ERROR(Probe(listen));
  try {
    impl->collectable = registry.impl_;
    impl->exposer = std::make_unique<prometheus::Exposer>(listen, /*num_threads=*/2);
    impl->exposer->RegisterCollectable(impl->collectable);
    const std::vector<int> ports = impl->exposer->GetListeningPorts();
    if (ports.empty()) return Unavailable("cannot serve metrics on " + listen + ": nothing listens");
    return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl), ports.front()));
  } catch (const std::exception& error) {
    return Unavailable("cannot serve metrics on " + listen + ": " + error.what());
  }
}

}  // namespace cachalot
