#pragma once
// The tokenizers that these tests use: the demo checkpoint's, and small ones made up in a test.

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/tokenizer/byte_alphabet.h"
#include "common/tokenizer/tokenizer.h"

namespace cachalot {

inline const std::string kDemoTokenizer = CACHALOT_SOURCE_DIR "/models/demo/tokenizer.json";

inline const Tokenizer& DemoTokenizer() {
  static const StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(kDemoTokenizer);
  CHECK_MSG(tokenizer.ok(), StatusMessage(tokenizer.status()));
  return **tokenizer;
}

inline nlohmann::json ReadJson(const std::string& path) {
  std::ifstream file(path);
  CHECK_MSG(file.is_open(), path);
  return nlohmann::json::parse(file);
}

/// A tokenizer.json with the 256 bytes (id = byte), then the results of `merges`, then the added tokens "<s>"
/// and "<sx>". Its one pattern keeps runs of letters together, runs of anything else too.
inline nlohmann::json SmallTokenizer(const std::vector<std::pair<std::string, std::string>>& merges) {
  nlohmann::json vocab, merge_list = nlohmann::json::array();
  for (int byte = 0; byte < 256; ++byte) vocab[AlphabetSymbol(static_cast<unsigned char>(byte))] = byte;
  for (const auto& [left, right] : merges) {
    const int next = static_cast<int>(vocab.size());
    if (!vocab.contains(left + right)) vocab[left + right] = next;
    merge_list.push_back({left, right});
  }
  const int added = static_cast<int>(vocab.size());
  const auto token = [](int id, const char* content) {
    return nlohmann::json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                          {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  return {{"added_tokens", {token(added, "<s>"), token(added + 1, "<sx>")}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Split"},
               {"pattern", {{"Regex", "\\p{L}+"}}},
               {"behavior", "Isolated"},
               {"invert", false}},
              {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}}};
}

inline std::unique_ptr<Tokenizer> Made(const nlohmann::json& json) {
  StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::FromJson(json.dump(), "small.json");
  CHECK_MSG(tokenizer.ok(), StatusMessage(tokenizer.status()));
  return std::move(*tokenizer);
}

}  // namespace cachalot
