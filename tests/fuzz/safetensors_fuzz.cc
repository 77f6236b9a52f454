// A .safetensors file. An input that begins with '{' is a header without its length: what stands before the
// first NUL is the header, the rest the data.

#include <sys/mman.h>
#include <unistd.h>

#include "common/loader/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {
namespace {

class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    CHECK(fd_ >= 0 && write(fd_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

std::string WithLength(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  return file.append(header).append(data);
}

/// A name in a header that the parser must read as the same name.
std::string Quoted(const std::string& name) {
  std::string text = "\"";
  for (char c : name) {
    char escaped[8];
    std::snprintf(escaped, sizeof(escaped), "\\u%04x", static_cast<unsigned char>(c));
    const bool plain = static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\';
    text += plain ? std::string(1, c) : escaped;
  }
  return text + "\"";
}

std::string HeaderOf(const SafetensorsFile& file, uint64_t data_begin) {
  std::string header = "{";
  for (const SafetensorsEntry& entry : file.entries()) {
    header += (header.size() > 1 ? "," : "") + Quoted(entry.name) + ":{\"dtype\":\"" +
              std::string(entry.dtype) + "\",\"shape\":" + ShapeText(entry.shape) + ",\"data_offsets\":[" +
              std::to_string(entry.begin - data_begin) + "," + std::to_string(entry.end - data_begin) + "]}";
  }
  return header + "}";
}

void CheckFile(const std::string& bytes) {
  const MemoryFile memory(bytes);
  auto file = SafetensorsFile::Open(memory.path());
  if (!file.ok()) {
    CHECK(file.status().code() == StatusCode::kDataLoss);
    return;
  }
  const uint64_t data_begin = 8 + (*file)->header().size();
  CHECK((*file)->Map().ok());
  uint64_t end = data_begin;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    CHECK(entry.begin >= end && entry.end >= entry.begin && entry.end <= bytes.size());
    end = entry.end;
    CHECK((*file)->Find(entry.name) == &entry);
    const auto mapped = (*file)->Bytes(entry);
    Bytes read(mapped.size());
    CHECK((*file)->ReadAt(entry.begin, read).ok());
    CHECK(Same(mapped, read) && Text(mapped) == bytes.substr(entry.begin, mapped.size()));
  }
  // The same entries written again are the same file.
  const MemoryFile again_memory(WithLength(HeaderOf(**file, data_begin), bytes.substr(data_begin)));
  const auto again = SafetensorsFile::Open(again_memory.path());
  CHECK_MSG(again.ok(), StatusMessage(again.status()));
  const uint64_t again_begin = 8 + (*again)->header().size();
  CHECK((*again)->entries().size() == (*file)->entries().size());
  for (size_t i = 0; i < (*file)->entries().size(); ++i) {
    const SafetensorsEntry &a = (*file)->entries()[i], &b = (*again)->entries()[i];
    CHECK(a.name == b.name && a.dtype == b.dtype && a.shape == b.shape);
    CHECK(a.begin - data_begin == b.begin - again_begin && a.bytes() == b.bytes());
  }
}

}  // namespace

std::vector<Seed> Seeds() {
  const std::string two =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[8,11]},"e":{"dtype":"BF16","shape":[0],"data_offsets":[8,8]}})";
  const std::string data = "0123456789abcdef", nul(1, '\0');
  return {{"file", WithLength(two, data)},
          {"header", two + nul + data},
          {"empty", WithLength("{}", "")},
          {"scalar", R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})" + nul + data},
          {"fp4", R"({"s\u00e9\n":{"dtype":"F4","shape":[2,3],"data_offsets":[1,4]}})" + nul + data},
          {"overflow",
           R"({"s":{"dtype":"I64","shape":[9223372036854775807,3],"data_offsets":[0,8]}})" + nul + data},
          {"overlap", R"({"s":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"t":{"dtype":"U8","shape":[4],)"
                      R"("data_offsets":[3,7]}})" +
                          nul + data},
          {"deep", WithLength(std::string(3000, '['), "")}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot::fuzz;
  const std::string_view input = Text(data, size);
  if (!input.starts_with('{')) {
    CheckFile(std::string(input));
    return 0;
  }
  const size_t end = std::min(input.find('\0'), input.size());
  CheckFile(WithLength(input.substr(0, end), input.substr(std::min(end + 1, input.size()))));
  return 0;
}
