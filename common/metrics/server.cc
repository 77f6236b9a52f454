#include "common/metrics/server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <stop_token>
#include <thread>
#include <utility>

#include "common/metrics/registry_impl.h"
#include "prometheus/exposer.h"

namespace cachalot {
namespace {

/// `host`: a numeric IPv4 address. False when it is none.
bool MakeAddress(const std::string& host, int port, sockaddr_in* address) {
  *address = {};
  address->sin_family = AF_INET;
  address->sin_port = htons(static_cast<uint16_t>(port));
  return inet_pton(AF_INET, host.c_str(), &address->sin_addr) == 1;
}

// A stopping civetweb looks up from its listening socket only every two seconds, or when somebody knocks.
void Knock(const std::string& host, int port) {
  sockaddr_in address;
  if (!MakeAddress(host, port, &address)) return;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  [[maybe_unused]] const int result =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  close(fd);
}

// civetweb reports only that it failed, so the address is tried first for the system's reason. Debian builds
// it without IPv6.
Status Probe(const std::string& listen) {
  const std::string what = "cannot serve metrics on " + listen + ": ";
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos || colon + 1 == listen.size())
    return InvalidArgument(what + "expected host:port");
  int port = 0;
  for (const char digit : listen.substr(colon + 1)) {
    if (digit < '0' || digit > '9' || (port = port * 10 + digit - '0') > 65535) {
      return InvalidArgument(what + "expected a port from 0 to 65535");
    }
  }
  sockaddr_in address;
  if (!MakeAddress(listen.substr(0, colon), port, &address))
    return InvalidArgument(what + "the host must be a numeric IPv4 address");
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const bool usable = fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
                      ::listen(fd, 1) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  return usable ? OkStatus() : Unavailable(what + std::strerror(error));
}

}  // namespace

struct MetricsServer::Impl {
  std::shared_ptr<prometheus::Collectable> collectable;  // the exposer holds only a weak reference
  std::unique_ptr<prometheus::Exposer> exposer;
  std::string host;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl, int port) : impl_(std::move(impl)), port_(port) {}

MetricsServer::~MetricsServer() {
  if (!impl_->exposer) return;
  std::jthread knocker([this](std::stop_token stop) {
    while (!stop.stop_requested()) {
      Knock(impl_->host, port_);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  impl_->exposer.reset();
}

StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& listen,
                                                              const MetricsRegistry& registry) {
  auto impl = std::make_unique<Impl>();
  if (listen.empty()) return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl), 0));
  RETURN_IF_ERROR(Probe(listen));
  try {
    impl->host = listen.substr(0, listen.rfind(':'));
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
