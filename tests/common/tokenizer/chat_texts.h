#pragma once
// Encoding files for tests: made-up texts with their own hashes, since the released ones are not ours to
// ship.

#include <nlohmann/json.hpp>
#include <string>

#include "common/base/check.h"
#include "common/loader/sha256.h"
#include "common/tokenizer/chat_encoding.h"
#include "tests/common/tokenizer/test_tokenizers.h"

namespace cachalot {

inline std::string Sha256Hex(std::string_view text) {
  Sha256 sha256;
  sha256.Update(text);
  return sha256.HexDigest();
}

inline const nlohmann::json& ChatCases() {
  static const nlohmann::json cases = ReadJson(CACHALOT_SOURCE_DIR "/tests/golden/tokenizer/chat_cases.json");
  return cases;
}

inline ChatTextHashes MadeUpHashes() {
  const nlohmann::json& hashes = ChatCases()["hashes"];
  return {hashes["tools"], hashes["response_format"], hashes["effort_absolute"], hashes["effort_beyond"]};
}

/// `generation`: "preview" or "leveled".
inline ChatEncoding MadeUpEncoding(const std::string& generation) {
  StatusOr<ChatEncoding> encoding =
      ChatEncoding::FromSource(ChatCases()["encoders"][generation].get<std::string>(), "dir/encoding_dsv4.py",
                               Sha256Hex, MadeUpHashes());
  CHECK_MSG(encoding.ok(), StatusMessage(encoding.status()));
  return std::move(*encoding);
}

/// A byte tokenizer with every mark of the chat format.
inline std::unique_ptr<Tokenizer> TokenizerWithMarks() {
  nlohmann::json json = SmallTokenizer({{"a", "b"}});
  int id = 1000;
  for (const char* mark :
       {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>",
        "</think>", "｜DSML｜", "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>", "<｜authority｜>",
        "<｜domain｜>", "<｜title｜>", "<｜read_url｜>"}) {
    nlohmann::json token = json["added_tokens"][0];
    token["id"] = id++;
    token["content"] = mark;
    json["added_tokens"].push_back(token);
  }
  return Made(json);
}

}  // namespace cachalot
