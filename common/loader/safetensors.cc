#include "common/loader/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

#include "common/base/check.h"
#include "common/base/json_depth.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;

struct StoredType {
  std::string_view name;
  int bits;
};

// Every dtype of the format, not only those that a DeepSeek-V4 tensor may have: which of them fits is the
// caller's question, and its answer names the tensor.
constexpr StoredType kStoredTypes[] = {
    {"BOOL", 8},    {"F4", 4},   {"U8", 8},   {"I8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8},
    {"F8_E8M0", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
    {"U32", 32},    {"F32", 32}, {"I64", 64}, {"U64", 64}, {"F64", 64}};

Status SystemError(int error, const std::string& what) {
  const std::string message = what + ": " + std::strerror(error);
  if (error == ENOENT || error == ENOTDIR) return NotFound(message);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG || error == ENOMEM)
    return ResourceExhausted(message);
  if (error == EACCES || error == EPERM) return FailedPrecondition(message);
  return Internal(message);
}

constexpr int kMaxDepth = 8;  // a header needs three levels

/// JSON text with every object's keys checked for duplicates, which nlohmann would resolve in silence.
StatusOr<Json> ParseStrict(const std::string& text) {
  if (JsonIsDeeperThan(text, kMaxDepth))
    return DataLoss("header: wanted at most " + std::to_string(kMaxDepth) + " levels of nesting");
  std::vector<std::set<std::string>> open_objects;
  std::optional<std::string> duplicate;
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key && !open_objects.back().insert(value.get<std::string>()).second) {
      duplicate = value.get<std::string>();
    }
    return true;
  };
  try {
    Json json = Json::parse(text, watch);
    if (duplicate) return DataLoss("header: duplicate name '" + *duplicate + "'");
    if (!json.is_object())
      return DataLoss(std::string("header: wanted a JSON object, got ") + json.type_name());
    return json;
  } catch (const Json::exception& error) {
    return DataLoss(std::string("header: not JSON: ") + error.what());
  }
}

/// Elements of the shape; nothing if one is not a non-negative integer or the product exceeds int64.
std::optional<int64_t> ReadShape(const Json& json, std::vector<int64_t>* shape) {
  if (!json.is_array()) return std::nullopt;
  int64_t count = 1;
  for (const Json& dimension : json) {
    if (!dimension.is_number_unsigned()) return std::nullopt;
    const uint64_t value = dimension.get<uint64_t>();
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    shape->push_back(static_cast<int64_t>(value));
    if (__builtin_mul_overflow(count, shape->back(), &count)) return std::nullopt;
  }
  return count;
}

StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const Json& json, uint64_t data_begin,
                                      uint64_t file_size) {
  const std::string where = "tensor '" + name + "': ";
  if (!json.is_object() || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets")) {
    return DataLoss(where + "wanted an object with dtype, shape and data_offsets, got " +
                    json.dump().substr(0, 200));
  }
  SafetensorsEntry entry{.name = name};
  const Json &dtype = json["dtype"], &offsets = json["data_offsets"];
  const auto* type = std::find_if(std::begin(kStoredTypes), std::end(kStoredTypes), [&](const StoredType& t) {
    return dtype.is_string() && dtype.get_ref<const std::string&>() == t.name;
  });
  if (type == std::end(kStoredTypes)) return DataLoss(where + "wanted a known dtype, got " + dtype.dump());
  entry.dtype = type->name;

  const std::optional<int64_t> count = ReadShape(json["shape"], &entry.shape);
  int64_t bits = 0;
  if (!count || __builtin_mul_overflow(*count, int64_t{type->bits}, &bits) || bits % 8 != 0) {
    return DataLoss(where + "wanted a shape of non-negative integers whose bytes fit 63 bits, got " +
                    json["shape"].dump().substr(0, 200));
  }
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return DataLoss(where + "wanted data_offsets [begin, end], got " + offsets.dump().substr(0, 200));
  }
  const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>(),
                 room = file_size - data_begin;
  if (begin > end || end > room) {
    return DataLoss(where + "wanted data_offsets inside [0, " + std::to_string(room) + "], got " +
                    offsets.dump());
  }
  if (end - begin != static_cast<uint64_t>(bits / 8)) {
    return DataLoss(where + "wanted " + std::to_string(bits / 8) + " bytes for " + std::string(entry.dtype) +
                    ShapeText(entry.shape) + ", got " + std::to_string(end - begin));
  }
  entry.begin = data_begin + begin;
  entry.end = data_begin + end;
  return entry;
}

Status WriteAll(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = write(fd, bytes.data(), std::min(bytes.size(), size_t{1} << 30));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return SystemError(errno, "write");
    bytes = bytes.subspan(static_cast<size_t>(wrote));
  }
  return OkStatus();
}

}  // namespace

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  file->fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file->fd_ < 0) return SystemError(errno, path);
  struct stat info;
  if (fstat(file->fd_, &info) != 0) return SystemError(errno, path);
  if (!S_ISREG(info.st_mode)) return DataLoss(path + ": wanted a regular file");
  file->size_ = static_cast<uint64_t>(info.st_size);
  if (Status status = file->ReadHeader(); !status.ok()) return Annotate(status, path);
  if (Status status = file->ParseHeader(); !status.ok()) return Annotate(status, path);
  if (Status status = file->CheckOverlaps(); !status.ok()) return Annotate(status, path);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) close(fd_);
}

Status SafetensorsFile::ReadHeader() {
  uint64_t length = 0;
  if (size_ < sizeof(length)) {
    return DataLoss("wanted at least 8 bytes of header length, got a file of " + std::to_string(size_));
  }
  RETURN_IF_ERROR(ReadAt(0, std::as_writable_bytes(std::span(&length, 1))));
  if (length > kMaxSafetensorsHeader) {
    return DataLoss("header length: wanted at most " + std::to_string(kMaxSafetensorsHeader) + ", got " +
                    std::to_string(length));
  }
  if (length > size_ - sizeof(length)) {
    return DataLoss("header length: wanted at most the " + std::to_string(size_ - sizeof(length)) +
                    " bytes that follow, got " + std::to_string(length));
  }
  header_.resize(length);
  data_begin_ = sizeof(length) + length;
  return ReadAt(sizeof(length), std::as_writable_bytes(std::span(header_.data(), header_.size())));
}

Status SafetensorsFile::ParseHeader() {
  ASSIGN_OR_RETURN(const Json json, ParseStrict(header_));
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      if (!value.is_object())
        return DataLoss("__metadata__: wanted an object, got " + std::string(value.type_name()));
      continue;
    }
    ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(name, value, data_begin_, size_));
    entries_.push_back(std::move(entry));
  }
  return OkStatus();
}

Status SafetensorsFile::CheckOverlaps() {
  std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  for (size_t i = 1; i < entries_.size(); ++i) {
    const SafetensorsEntry &a = entries_[i - 1], &b = entries_[i];
    if (b.begin < a.end) {
      return DataLoss("tensor '" + b.name + "': wanted to begin at or after byte " + std::to_string(a.end) +
                      ", the end of '" + a.name + "', got " + std::to_string(b.begin));
    }
  }
  return OkStatus();
}

const SafetensorsEntry* SafetensorsFile::Find(std::string_view name) const {
  for (const SafetensorsEntry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

Status SafetensorsFile::Map() {
  if (data_) return OkStatus();
  void* data = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd_, 0);
  if (data == MAP_FAILED) return SystemError(errno, path_ + ": mmap");
  data_ = static_cast<const std::byte*>(data);
  return OkStatus();
}

std::span<const std::byte> SafetensorsFile::Bytes(const SafetensorsEntry& entry) const {
  CHECK(data_ != nullptr);
  return {data_ + entry.begin, static_cast<size_t>(entry.end - entry.begin)};
}

Status SafetensorsFile::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got = pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SystemError(errno, path_ + ": read");
    if (got == 0) return DataLoss(path_ + ": the file became shorter while it was read");
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return OkStatus();
}

void SafetensorsWriter::Add(const std::string& name, std::vector<int64_t> shape,
                            std::span<const float> data) {
  Add(Tensor{name, "F32", std::move(shape), std::as_bytes(data)});
}

void SafetensorsWriter::Add(const std::string& name, std::vector<int64_t> shape,
                            std::span<const int32_t> data) {
  Add(Tensor{name, "I32", std::move(shape), std::as_bytes(data)});
}

void SafetensorsWriter::Add(Tensor tensor) {
  size_t count = 1;
  for (int64_t dimension : tensor.shape) count *= static_cast<size_t>(dimension);
  CHECK_MSG(count * 4 == tensor.bytes.size(), tensor.name + ": shape " + ShapeText(tensor.shape));
  for (const Tensor& other : tensors_) CHECK_MSG(other.name != tensor.name, tensor.name + " added twice");
  tensors_.push_back(std::move(tensor));
}

Status SafetensorsWriter::Write(const std::string& path) const {
  Json json = Json::object();
  size_t at = 0;
  for (const Tensor& tensor : tensors_) {
    json[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes.size()}}};
    at += tensor.bytes.size();
  }
  // `replace` keeps dump from throwing on a name that is not UTF-8.
  std::string header = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is aligned in a mapping
  const uint64_t length = header.size();

  // The rename would replace what is no file: root's --output /dev/null would end as a regular file there.
  struct stat old;
  if (stat(path.c_str(), &old) == 0 && !S_ISREG(old.st_mode))
    return FailedPrecondition(path + ": wanted a regular file or a new name, got a device or a directory");
  const std::string temporary = path + ".tmp." + std::to_string(getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError(errno, temporary);
  Status status = WriteAll(fd, std::as_bytes(std::span(&length, 1)));
  if (status.ok()) status = WriteAll(fd, std::as_bytes(std::span(header.data(), header.size())));
  for (const Tensor& tensor : tensors_) {
    if (status.ok()) status = WriteAll(fd, tensor.bytes);
  }
  // Some file systems report a full disk only here.
  if (status.ok() && fsync(fd) != 0) status = SystemError(errno, "fsync");
  if (close(fd) != 0 && status.ok()) status = SystemError(errno, "close");
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) status = SystemError(errno, "rename");
  if (!status.ok()) {
    unlink(temporary.c_str());
    return Annotate(status, path);
  }
  return OkStatus();
}

}  // namespace cachalot
