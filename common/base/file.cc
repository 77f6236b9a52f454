#include "common/base/file.h"

#include <filesystem>
#include <fstream>
#include <sstream>

namespace cachalot {

StatusOr<std::string> ReadNonEmptyFile(const std::string& path) {
  const auto refused = [&](const char* got) {
    return InvalidArgument(path + ": wanted a file with something in it, got " + got);
  };
  std::error_code ignored;
  if (std::filesystem::symlink_status(path, ignored).type() == std::filesystem::file_type::not_found)
    return NotFound(path + ": no such file");
  if (std::filesystem::is_directory(path, ignored)) return refused("a directory");
  std::ifstream in(path, std::ios::binary);
  const bool ends = in.peek() == std::ifstream::traits_type::eof();
  if (in.is_open() && ends && !in.bad()) return refused("an empty one");
  std::ostringstream text;
  text << in.rdbuf();  // sets the fail bit, and does not throw, where nothing can be read
  if (!text) return refused("one that cannot be read");
  return std::move(text).str();
}

}  // namespace cachalot
