#pragma once
// Safetensors files as editable maps, and scratch directories, for tests that break a good checkpoint on
// purpose.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace cachalot::testing {

inline std::string Source(const std::string& path) { return std::string(CACHALOT_SOURCE_DIR) + "/" + path; }

inline std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  ASSERT_TRUE(out.flush()) << path;
}

class TempDir {
 public:
  TempDir() : path_(std::filesystem::temp_directory_path() / ("cachalot-test-" + HexId(RandomId()))) {
    std::filesystem::create_directories(path_);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

using StoredTensors = std::map<std::string, StoredTensor>;

/// The file image: header length, header and data, tensors in the order of their names.
inline std::string SafetensorsImage(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string image(8, '\0');
  std::memcpy(image.data(), &length, 8);
  return image + header + data;
}

/// `pad` spaces after the header move the data off any alignment.
inline void WriteTensors(const std::string& path, const StoredTensors& tensors, int pad = 0) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8 + pad, ' ');
  WriteText(path, SafetensorsImage(text, data));
}

inline StoredTensors ReadTensors(const std::string& path) {
  const std::string image = ReadText(path);
  uint64_t length = 0;
  std::memcpy(&length, image.data(), 8);
  StoredTensors tensors;
  const nlohmann::json header = nlohmann::json::parse(image.substr(8, length));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    tensors[name] = {entry["dtype"], entry["shape"], image.substr(8 + length + begin, end - begin)};
  }
  return tensors;
}

}  // namespace cachalot::testing
