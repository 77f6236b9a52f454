#include "common/loader/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <unordered_set>

#include "common/base/check.h"
#include "common/base/json_depth.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kSampleBytes = 64;

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

StatusOr<std::shared_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) return NotFound(directory + ": no such directory");
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->directory_ = directory;
  const std::string index = directory + "/model.safetensors.index.json";
  if (!Exists(index)) {
    if (!Exists(directory + "/model.safetensors")) {
      return NotFound(directory + ": neither model.safetensors.index.json nor model.safetensors");
    }
    RETURN_IF_ERROR(checkpoint->AddShard("model.safetensors", nullptr));
    return checkpoint;
  }
  ASSIGN_OR_RETURN(const auto shards, checkpoint->ReadIndex(index));
  for (const auto& [file, names] : shards) RETURN_IF_ERROR(checkpoint->AddShard(file, &names));
  return checkpoint;
}

StatusOr<std::map<std::string, std::vector<std::string>>> Checkpoint::ReadIndex(
    const std::string& path) const {
  std::ifstream stream(path, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  if (!stream) return DataLoss(path + ": cannot be read");
  if (JsonIsDeeperThan(text.view(), kMaxJsonDepth))
    return DataLoss(path + ": wanted at most " + std::to_string(kMaxJsonDepth) + " levels of nesting");
  const Json json = Json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return DataLoss(path + ": wanted a JSON object with an object 'weight_map'");
  }
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [name, file] : json["weight_map"].items()) {
    // A path would let an index reach outside its own directory.
    if (!file.is_string() || file.get_ref<const std::string&>().find('/') != std::string::npos) {
      return DataLoss(path + ": tensor '" + name + "': wanted a file name without '/', got " +
                      (file.is_string() ? file.get<std::string>() : file.type_name()));
    }
    shards[file.get<std::string>()].push_back(name);
  }
  return shards;
}

Status Checkpoint::AddShard(const std::string& name, const std::vector<std::string>* indexed) {
  ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(directory_ + "/" + name));
  std::unordered_set<std::string_view> wanted;
  if (indexed) wanted.insert(indexed->begin(), indexed->end());
  for (const SafetensorsEntry& entry : file->entries()) {
    // A tensor that the index puts elsewhere, or nowhere, is a leftover.
    if (indexed && wanted.erase(entry.name) == 0) continue;
    RETURN_IF_ERROR(AddTensor(file.get(), &entry));
  }
  if (!wanted.empty()) {
    const std::string_view first = *std::min_element(wanted.begin(), wanted.end());
    return DataLoss(file->path() + ": tensor '" + std::string(first) +
                    "': the index puts it here, the file lacks it" +
                    (wanted.size() > 1 ? " (and " + std::to_string(wanted.size() - 1) + " more)" : ""));
  }
  shards_.push_back(std::move(file));
  return OkStatus();
}

Status Checkpoint::AddTensor(SafetensorsFile* file, const SafetensorsEntry* entry) {
  const Tensor tensor{file, entry};
  const std::string official = OfficialTensorName(entry->name);
  const auto [at, added] = tensors_.emplace(official, tensor);
  if (added) return OkStatus();
  return DataLoss(tensor.Where() + " and " + at->second.Where() + ": wanted one tensor for '" + official +
                  "', got two");
}

const Checkpoint::Tensor* Checkpoint::Find(const std::string& official_name) const {
  const auto at = tensors_.find(official_name);
  return at == tensors_.end() ? nullptr : &at->second;
}

std::vector<std::string> Checkpoint::OfficialNames() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

StatusOr<std::span<const std::byte>> Checkpoint::Map(const Tensor& tensor, size_t alignment) {
  return Map(tensor, alignment, 0, tensor.entry->bytes());
}

StatusOr<std::span<const std::byte>> Checkpoint::Map(const Tensor& tensor, size_t alignment, int64_t offset,
                                                     int64_t count) {
  CHECK(offset >= 0 && count >= 0 && offset + count <= tensor.entry->bytes());
  RETURN_IF_ERROR(tensor.file->Map());
  const std::span<const std::byte> bytes = tensor.file->Bytes(*tensor.entry).subspan(offset, count);
  mapped_bytes_ += count;
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignment == 0) return bytes;
  std::span<std::byte> copy = Allocate(bytes.size());
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  return std::span<const std::byte>(copy);
}

std::span<std::byte> Checkpoint::Allocate(size_t bytes) {
  owned_.push_back(std::make_unique<std::byte[]>(bytes));
  allocated_bytes_ += static_cast<int64_t>(bytes);
  return {owned_.back().get(), bytes};
}

Status Checkpoint::AddFingerprint(Sha256* hash) const {
  for (const auto& file : shards_) {
    hash->Update(file->header());
    for (const SafetensorsEntry& entry : file->entries()) {
      std::array<std::byte, kSampleBytes> sample;
      const uint64_t size = std::min(kSampleBytes, entry.end - entry.begin);
      for (uint64_t offset : {entry.begin, entry.end - size}) {
        RETURN_IF_ERROR(file->ReadAt(offset, std::span(sample).first(size)));
        hash->Update(std::span<const std::byte>(sample).first(size));
      }
    }
  }
  return OkStatus();
}

int Checkpoint::MappedFiles() const {
  return static_cast<int>(
      std::count_if(shards_.begin(), shards_.end(), [](const auto& file) { return file->mapped(); }));
}

}  // namespace cachalot
