#pragma once
// Random identities. An epoch names one life of a process: state that carries another epoch is refused.

#include <cstdint>
#include <string>

namespace cachalot {

/// 64 random bits from the operating system, never 0.
uint64_t RandomId();

/// 16 lower-case hex digits.
std::string HexId(uint64_t id);

}  // namespace cachalot
