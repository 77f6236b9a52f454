#include "tests/support/oracle.h"

#include <unistd.h>

#include <cstring>
#include <algorithm>
#include <filesystem>

#include "common/loader/safetensors.h"

namespace cachalot::testing {
namespace {

namespace fs = std::filesystem;

template <typename T>
StatusOr<std::vector<T>> ReadAll(const SafetensorsFile& file, const char* name) {
  const SafetensorsEntry* entry = file.Find(name);
  if (!entry) return NotFound(file.path() + ": no tensor " + name);
  const auto bytes = file.Bytes(*entry);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

StatusOr<OracleCase> OracleCase::Load(const std::string& directory) {
  ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(directory + "/oracle.safetensors"));
  RETURN_IF_ERROR(file->Map());
  OracleCase c;
  c.directory = directory;
  ASSIGN_OR_RETURN(c.input_ids, ReadAll<int32_t>(*file, "input_ids"));
  ASSIGN_OR_RETURN(c.greedy_tokens, ReadAll<int32_t>(*file, "greedy_tokens"));
  ASSIGN_OR_RETURN(c.prompt_logits, ReadAll<float>(*file, "prompt_logits"));
  ASSIGN_OR_RETURN(c.greedy_logits, ReadAll<float>(*file, "greedy_logits"));
  return c;
}

std::vector<std::string> OracleDirectories() {
  std::vector<std::string> directories;
  for (const fs::path root : {fs::path(CACHALOT_SOURCE_DIR) / "tests/golden/oracle",
                              fs::path(CACHALOT_SOURCE_DIR) / "../shared/oracle"}) {
    if (!fs::exists(root)) continue;
    for (const auto& entry : fs::directory_iterator(root)) {
      bool known = false;
      for (const auto& other : directories) known |= fs::path(other).filename() == entry.path().filename();
      if (!known && fs::exists(entry.path() / "oracle.safetensors")) directories.push_back(entry.path());
    }
  }
  std::sort(directories.begin(), directories.end());
  return directories;
}

std::string DemoDirectory() { return CACHALOT_SOURCE_DIR "/models/demo"; }

std::string WithOfficialConfig(const std::string& directory) {
  if (!fs::exists(directory + "/config.official.json")) return "";
  const fs::path copy =
      fs::temp_directory_path() / ("cachalot-official-" + std::to_string(getpid())) / fs::path(directory).filename();
  fs::remove_all(copy);
  fs::create_directories(copy);
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().filename() != "config.json" && entry.path().filename() != "config.official.json")
      fs::create_symlink(fs::absolute(entry.path()), copy / entry.path().filename());
  fs::copy_file(directory + "/config.official.json", copy / "config.json");
  return copy;
}

}  // namespace cachalot::testing
