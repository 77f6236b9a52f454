#include "common/base/address.h"

#include <charconv>

namespace cachalot {
namespace {

constexpr const char* kUnix = "unix:";

}  // namespace

StatusOr<ListenAddress> ParseListenAddress(const std::string& text) {
  const auto wrong = [&] { return InvalidArgument("expected host:port or unix:path, got \"" + text + "\""); };
  ListenAddress address;
  if (text.starts_with(kUnix)) {
    address.path = text.substr(5);
    if (address.path.starts_with("//")) address.path.erase(0, 2);  // unix:///absolute
    if (address.path.empty()) return wrong();
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == text.size()) return wrong();
  address.host = text.substr(0, colon);
  const bool bracketed = address.host.front() == '[' && address.host.back() == ']' && address.host.size() > 2;
  if (bracketed) {
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    return InvalidArgument("expected host:port or unix:path, got \"" + text + "\"; an IPv6 address stands in []");
  }
  const std::string port = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc() || end != port.data() + port.size() || address.port < 0 || address.port > 65535)
    return InvalidArgument("the port is \"" + port + "\", wanted 0 to 65535");
  return address;
}

std::string BoundAddress(const std::string& listen, int port) {
  if (listen.starts_with(kUnix)) return listen;
  return listen.substr(0, listen.rfind(':') + 1) + std::to_string(port);
}

}  // namespace cachalot
