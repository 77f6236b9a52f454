#pragma once
// One .safetensors file: 8 bytes little-endian header length, a JSON header, then the tensors' bytes.
// Opening reads and checks the header only; Map() maps the data, read-only and shared, at the first use.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

struct SafetensorsEntry {
  std::string name;
  std::string_view dtype;       // as written: "F32", "BF16", "F8_E4M3", "I8", ...; static storage
  std::vector<int64_t> shape;   // as stored: FP4 pairs count as one I8 element
  uint64_t begin = 0, end = 0;  // bytes of the file, not of the data section

  int64_t bytes() const { return static_cast<int64_t>(end - begin); }
};

/// "[2, 3]", for messages.
std::string ShapeText(std::span<const int64_t> shape);

/// Larger headers are refused: no real one comes near, and the length is the first thing a broken file gets
/// wrong.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

class SafetensorsFile {
 public:
  /// NOT_FOUND: no such file. DATA_LOSS, naming file, tensor, wanted and got: a header that is too long for
  /// the file or over the cap, not a JSON object, a duplicate or malformed entry, an unknown dtype, a
  /// negative or overflowing shape, offsets outside the file, a byte count other than dtype * shape, or
  /// tensors that overlap. Gaps between tensors are accepted, nothing reads them.
  static StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::string& header() const { return header_; }                      // the JSON text
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in file order
  const SafetensorsEntry* Find(std::string_view name) const;                 // linear; nullptr: none

  /// Maps the file if it is not yet mapped. Not thread-safe. RESOURCE_EXHAUSTED or INTERNAL with the system's
  /// reason.
  Status Map();
  bool mapped() const { return data_ != nullptr; }

  /// The bytes of an entry of this file; Map() must have succeeded.
  std::span<const std::byte> Bytes(const SafetensorsEntry& entry) const;

  /// Reads bytes without mapping: [offset, offset + out.size()) of the file.
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const;

 private:
  SafetensorsFile() = default;
  Status ReadHeader();
  Status ParseHeader();
  Status CheckOverlaps();

  std::string path_, header_;
  std::vector<SafetensorsEntry> entries_;
  int fd_ = -1;
  uint64_t size_ = 0, data_begin_ = 0;
  const std::byte* data_ = nullptr;  // the whole file
};

/// Collects tensors and writes them in one go. The data is not copied: it must live until Write returns.
/// A shape that does not fit the data, or a name given twice, is a bug of the caller (CHECK).
class SafetensorsWriter {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape, std::span<const float> data);
  void Add(const std::string& name, std::vector<int64_t> shape, std::span<const int32_t> data);

  /// Writes to a temporary name beside `path`, then renames: readers see the old file or the whole new one.
  /// RESOURCE_EXHAUSTED: disk full; NOT_FOUND: no such directory; FAILED_PRECONDITION: a device or a
  /// directory has that name. The temporary file is removed on error.
  Status Write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    std::string_view dtype;
    std::vector<int64_t> shape;
    std::span<const std::byte> bytes;
  };
  void Add(Tensor tensor);

  std::vector<Tensor> tensors_;
};

}  // namespace cachalot
