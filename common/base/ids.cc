#include "common/base/ids.h"

#include <sys/random.h>

#include <cstdio>

#include "common/base/check.h"

namespace cachalot {

uint64_t RandomId() {
  uint64_t id = 0;
  while (id == 0) CHECK(getrandom(&id, sizeof(id), 0) == sizeof(id));
  return id;
}

std::string HexId(uint64_t id) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(id));
  return text;
}

}  // namespace cachalot
