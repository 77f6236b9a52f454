// A tokenizer.json and a text to encode, with a NUL between them. A first part that does not begin with '{'
// is a list of merges instead: pairs of bytes, each the number of a token there already (mod their count),
// over the 256 bytes.

#include <nlohmann/json.hpp>

#include "common/tokenizer/byte_alphabet.h"
#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxMerges = 64;

Json Added(int id, const char* content, bool normalized) {
  return {{"id", id}, {"content", content}, {"normalized", normalized}, {"special", !normalized}};
}

std::string JsonOf(std::string_view merges) {
  Json vocab, list = Json::array();
  std::vector<std::string> spellings;
  for (int byte = 0; byte < 256; ++byte)
    spellings.push_back(AlphabetSymbol(static_cast<unsigned char>(byte)));
  for (size_t i = 0; i < spellings.size(); ++i) vocab[spellings[i]] = i;
  for (size_t i = 0; i + 1 < merges.size() && i < 2 * kMaxMerges; i += 2) {
    // The newest tokens come first behind the letters, so that one byte reaches them.
    const auto token = [&](uint8_t number) -> const std::string& {
      return number >= 0x80 && spellings.size() > 256
                 ? spellings[spellings.size() - 1 - number % (spellings.size() - 256)]
                 : spellings[number];
    };
    const std::string left = token(static_cast<uint8_t>(merges[i])),
                      right = token(static_cast<uint8_t>(merges[i + 1]));
    if (left.size() + right.size() > 600) continue;
    list.push_back({left, right});
    if (vocab.contains(left + right)) continue;
    vocab[left + right] = spellings.size();
    spellings.push_back(left + right);
  }
  // A space stands in no spelling: no merge makes one of these.
  const int next = static_cast<int>(spellings.size());
  const Json split = {{"type", "Split"},
                      {"pattern", {{"Regex", "\\p{L}+|\\p{N}{1,3}"}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return Json{{"added_tokens",
               {Added(next, "< s>", false), Added(next + 1, "< sx>", false), Added(next + 2, "x >", true)}},
              {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}},
              {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}}
      .dump();
}

/// `ours`: the file is made here, so that no text may be refused but for its encoding.
void CheckText(const Tokenizer& tokenizer, std::string_view text, bool ours) {
  for (bool special : {false, true}) {
    const auto ids = tokenizer.Encode(text, special);
    if (FindInvalidUtf8(text) != std::string_view::npos) {
      CHECK(ids.status().code() == StatusCode::kInvalidArgument);
      continue;
    }
    CHECK_MSG(ids.ok() || !ours, StatusMessage(ids.status()));
    if (!ids.ok()) continue;
    CHECK(tokenizer.DecodeRaw(*ids) == text);
    CHECK(*tokenizer.Encode(text, special) == *ids);
    for (int32_t id : *ids) {
      CHECK(id >= 0 && id < tokenizer.vocab_size() && !tokenizer.TokenBytes(id).empty());
      CHECK(special || !(tokenizer.IsAdded(id) || tokenizer.IsSpecial(id)));
    }
  }
}

void CheckTokens(const Tokenizer& tokenizer) {
  const int32_t size = tokenizer.vocab_size();
  CHECK(tokenizer.TokenBytes(-1).empty() && tokenizer.TokenBytes(size).empty() && !tokenizer.IsAdded(size));
  for (int32_t id = 0; id < std::min(size, 2000); ++id) {
    const std::string_view bytes = tokenizer.TokenBytes(id);
    if (bytes.empty()) continue;
    const auto found = tokenizer.TokenId(bytes);
    CHECK(found && tokenizer.TokenBytes(*found) == bytes);
    CHECK(!tokenizer.IsAdded(id) || found == id);
  }
}

}  // namespace

std::vector<Seed> Seeds() {
  const std::string nul(1, '\0');
  const std::string text = "hello < s> world < sx> x > 1234 \u00e9\u4e2d\u6587";
  std::string refused = JsonOf("");
  refused.replace(refused.find("\"BPE\""), 5, "\"WordPiece\"");
  std::string many;
  for (int i = 0; i < 40; ++i) many += std::string(i == 0 ? "aa" : "\x80\x80");
  return {{"json", JsonOf("helo\x80\x81") + nul + text}, {"merges", "helollhe\x80o" + nul + text},
          {"long", many + nul + std::string(700, 'a')},  {"no_merges", nul + text},
          {"not_utf8", "ab" + nul + "ab\xff\xc3"},       {"refused", refused + nul + text}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  const std::string_view input = fuzz::Text(data, size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view first = input.substr(0, end), text = input.substr(std::min(end + 1, input.size()));
  const bool ours = !first.starts_with('{');
  const auto tokenizer = Tokenizer::FromJson(ours ? fuzz::JsonOf(first) : std::string(first), "fuzz");
  if (!tokenizer.ok()) {
    CHECK_MSG(!ours && tokenizer.status().code() == StatusCode::kInvalidArgument,
              StatusMessage(tokenizer.status()));
    return 0;
  }
  fuzz::CheckTokens(**tokenizer);
  fuzz::CheckText(**tokenizer, text, ours);
  return 0;
}
