#pragma once
// Copies of a small good checkpoint, broken on purpose.

#include <filesystem>
#include <functional>
#include <string>

#include "tests/common/loader/tensor_files.h"

namespace cachalot::testing {

inline std::string TinyCheckpoint() { return Source("tests/golden/oracle/tiny"); }

/// A copy of the tiny checkpoint in a folder of its own: 6 layers, hidden 64, vocabulary 512, 16 experts,
/// context 4096, no tokenizer.
class BrokenCheckpoint {
 public:
  BrokenCheckpoint() {
    for (const char* name : {"config.json", "model.safetensors"})
      std::filesystem::copy_file(TinyCheckpoint() + "/" + name, directory_ / name);
  }

  std::string path() const { return directory_.path(); }
  std::string operator/(const std::string& name) const { return directory_ / name; }
  std::string weights() const { return directory_ / "model.safetensors"; }

  void Config(const std::string& key, const nlohmann::json& value) {
    auto config = nlohmann::json::parse(ReadText(directory_ / "config.json"));
    config[key] = value;
    WriteText(directory_ / "config.json", config.dump());
  }
  void Tensors(const std::function<void(StoredTensors&)>& change) {
    StoredTensors tensors = ReadTensors(weights());
    change(tensors);
    WriteTensors(weights(), tensors);
  }
  /// The header's JSON; the data stay as they are.
  void Header(const std::function<void(nlohmann::json&)>& change) {
    const std::string image = ReadText(weights());
    uint64_t length = 0;
    std::memcpy(&length, image.data(), 8);
    auto header = nlohmann::json::parse(image.substr(8, length));
    change(header);
    WriteText(weights(), SafetensorsImage(header.dump(), image.substr(8 + length)));
  }
  void HeaderLength(uint64_t length) {
    std::string image = ReadText(weights());
    std::memcpy(image.data(), &length, 8);
    WriteText(weights(), image);
  }
  void Truncate(uintmax_t size) { std::filesystem::resize_file(weights(), size); }
  uintmax_t Size() const { return std::filesystem::file_size(weights()); }
  void Index(const nlohmann::json& index) {
    WriteText(directory_ / "model.safetensors.index.json", index.dump());
  }

 private:
  TempDir directory_;
};

/// `count` bf16 NaNs over the beginning of a tensor's bytes at `offset` elements.
inline void PutNans(StoredTensor& tensor, size_t offset, size_t count) {
  for (size_t i = 0; i < count; ++i) tensor.bytes.replace(2 * (offset + i), 2, "\xc0\x7f");
}

}  // namespace cachalot::testing
