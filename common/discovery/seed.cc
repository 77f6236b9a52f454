#include "common/discovery/seed.h"

#include <charconv>

namespace cachalot {
namespace {

constexpr std::string_view kScheme = "dns:";

}  // namespace

StatusOr<Seed> ParseSeed(const std::string& text) {
  Seed seed;
  seed.text = text;
  if (!text.starts_with(kScheme)) {
    seed.address = text;
    return seed;
  }
  const size_t colon = text.rfind(':');
  const std::string name = colon < kScheme.size() ? "" : text.substr(kScheme.size(), colon - kScheme.size());
  const char *first = text.data() + colon + 1, *last = text.data() + text.size();
  const auto [stop, error] = std::from_chars(first, last, seed.port);
  const bool number = error == std::errc() && stop == last && seed.port >= 1 && seed.port <= 65535;
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
