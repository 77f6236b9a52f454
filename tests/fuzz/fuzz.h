#pragma once
// What the fuzz targets share. A target defines LLVMFuzzerTestOneInput, which aborts where an invariant does
// not hold, and Seeds: valid inputs made by the library's own encoders, the start of its corpus.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace cachalot::fuzz {

using Bytes = std::vector<std::byte>;

struct Seed {
  std::string name;  // of its file
  std::string bytes;
};

std::vector<Seed> Seeds();

inline std::string_view Text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}
inline std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline Bytes CopyOf(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }
inline Bytes CopyOf(const uint8_t* data, size_t size) { return CopyOf(std::as_bytes(std::span(data, size))); }
inline bool Same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

}  // namespace cachalot::fuzz
