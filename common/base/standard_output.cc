#include "common/base/standard_output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

namespace cachalot {
namespace {

Status Failed(int error) {
  return Unavailable(std::string("stdout: write: ") + (error != 0 ? std::strerror(error) : "failed"));
}

}  // namespace

Status WriteStdout(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) return Failed(errno);
  return FlushStdout();
}

Status FlushStdout() {
  errno = 0;
  if (std::fflush(stdout) != 0) return Failed(errno);
  // An earlier write failed, and its reason is gone with it.
  return std::ferror(stdout) ? Failed(0) : OkStatus();
}

}  // namespace cachalot
