#pragma once
// A directory with model.safetensors, or with model.safetensors.index.json and its shards: tensors by
// official name (model.md 7.1), whichever of the spellings of model.md 7.3 the files use. Knows names, shards and
// bytes; what shape or dtype a tensor ought to have is the business of common/model/weights.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"
#include "common/loader/safetensors.h"
#include "common/loader/sha256.h"
#include "common/loader/tensor_names.h"

namespace cachalot {

class Checkpoint {
 public:
  struct Tensor {
    SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;

    /// "path: tensor 'stored name'", for messages.
    std::string Where() const { return file->path() + ": tensor '" + entry->name + "'"; }
  };

  /// Reads and checks every header, maps nothing. NOT_FOUND: no checkpoint there. DATA_LOSS: a broken header
  /// or index, a shard that lacks a tensor which the index puts there, or two stored tensors with one
  /// official name.
  static StatusOr<std::shared_ptr<Checkpoint>> Open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  const Tensor* Find(const std::string& official_name) const;  // nullptr: none
  std::vector<std::string> OfficialNames() const;              // sorted

  /// The tensor's bytes, valid as long as this object: in the mapping (its file is mapped at the first use)
  /// or, where they do not lie on an `alignment` boundary, in a copy. Not thread-safe.
  StatusOr<std::span<const std::byte>> Map(const Tensor& tensor, size_t alignment);
  /// The same of its bytes [offset, offset + count): one expert of a stack.
  StatusOr<std::span<const std::byte>> Map(const Tensor& tensor, size_t alignment, int64_t offset,
                                           int64_t count);

  /// Zeroed memory that lives as long as this object, aligned for any scalar.
  std::span<std::byte> Allocate(size_t bytes);

  /// Adds every shard's header and the first and last 64 bytes of every tensor, in a fixed order. Reads
  /// without mapping, so the result does not depend on what is mapped.
  Status AddFingerprint(Sha256* hash) const;

  int64_t MappedBytes() const { return mapped_bytes_; }  // of the tensors given out by Map, copies included
  int64_t AllocatedBytes() const { return allocated_bytes_; }
  int MappedFiles() const;

 private:
  Checkpoint() = default;
  StatusOr<std::map<std::string, std::vector<std::string>>> ReadIndex(const std::string& path) const;
  Status AddShard(const std::string& file, const std::vector<std::string>* indexed);
  Status AddTensor(SafetensorsFile* file, const SafetensorsEntry* entry);

  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;  // by file name
  std::unordered_map<std::string, Tensor> tensors_;       // by official name
  std::vector<std::unique_ptr<std::byte[]>> owned_;
  int64_t mapped_bytes_ = 0, allocated_bytes_ = 0;
};

}  // namespace cachalot
