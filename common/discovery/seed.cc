#include "common/discovery/seed.h"

#include <charconv>

namespace cachalot {
namespace {

constexpr std::string_view kScheme = "dns:";

bool IsPort(const char* first, const char* last, int* port) {
  const auto [stop, error] = std::from_chars(first, last, *port);
  return error == std::errc() && stop == last && *port >= 1 && *port <= 65535;
}

/// Of gRPC's targets, which have other forms than HOST:PORT. Without a port gRPC would take 443, and any port modulo
/// 65536.
bool IsTarget(const std::string& text) {
  for (const char* scheme : {"unix:", "unix-abstract:", "ipv4:", "ipv6:", "passthrough:", "xds:"})
    if (text.starts_with(scheme)) return true;
  return false;
}

}  // namespace

Status CheckAddress(const std::string& text) {
  if (IsTarget(text)) return OkStatus();
  const size_t colon = text.rfind(':');
  int port = 0;
  const bool bracketed = text.starts_with('[') && colon != std::string::npos && colon > 0 && text[colon - 1] == ']';
  const bool good = colon != std::string::npos && colon > 0 &&
                    (bracketed || text.find_first_of(":/[] ") == colon) &&
                    IsPort(text.data() + colon + 1, text.data() + text.size(), &port);
  return good ? OkStatus()
              : InvalidArgument("\"" + text + "\": wanted HOST:PORT with a port in 1 to 65535" +
                                (text.find("://") != std::string::npos ? ", without a scheme" : ""));
}

StatusOr<Seed> ParseSeed(const std::string& text) {
  Seed seed;
  seed.text = text;
  if (!text.starts_with(kScheme)) {
    RETURN_IF_ERROR(CheckAddress(text));
    seed.address = text;
    return seed;
  }
  const size_t colon = text.rfind(':');
  const std::string name = colon < kScheme.size() ? "" : text.substr(kScheme.size(), colon - kScheme.size());
  const bool number = IsPort(text.data() + colon + 1, text.data() + text.size(), &seed.port);
  if (name.empty() || !number || name.find_first_of("/:[] ") != std::string::npos)
    return InvalidArgument("\"" + text + "\": wanted dns:NAME:PORT with a port in 1 to 65535");
  seed.name = name;
  return seed;
}

StatusOr<std::vector<Seed>> ParseSeeds(const std::vector<std::string>& texts) {
  std::vector<Seed> seeds;
  for (const std::string& text : texts) {
    ASSIGN_OR_RETURN(Seed seed, ParseSeed(text));
    seeds.push_back(std::move(seed));
  }
  return seeds;
}

std::string JoinHostPort(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

}  // namespace cachalot
