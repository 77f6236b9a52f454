#include "common/tokenizer/tokenizer.h"

#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "common/base/file.h"
#include "common/base/json_depth.h"
#include "common/tokenizer/bpe.h"
#include "common/tokenizer/byte_alphabet.h"
#include "common/tokenizer/pretokenizer.h"
#include "common/tokenizer/special_matcher.h"
#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxTextBytes = size_t{64} << 20;  // one long piece takes about 50 bytes of memory per byte
constexpr char kUseCheckpoint[] = "; use the tokenizer.json that came with the checkpoint";

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;
};

bool Flag(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_boolean() && it->get<bool>();
}

StatusOr<AddedToken> ReadAddedToken(const Json& entry, const std::string& where) {
  const bool complete = entry.is_object() && entry.contains("id") && entry["id"].is_number_integer() &&
                        entry["id"] >= 0 && entry["id"] <= kMaxTokenId && entry.contains("content") &&
                        entry["content"].is_string() &&
                        !entry["content"].get_ref<const std::string&>().empty();
  if (!complete) {
    return InvalidArgument(where + " is " + entry.dump(-1, ' ', true) +
                           ", expected an object with an integer id >= 0 and a non-empty content" +
                           kUseCheckpoint);
  }
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (Flag(entry, key)) {
      return InvalidArgument(where + " has " + key + " true, which is not supported" + kUseCheckpoint);
    }
  }
  return AddedToken{entry["id"].get<int32_t>(), entry["content"].get<std::string>(), Flag(entry, "special"),
                    Flag(entry, "normalized")};
}

/// The parts of the file that must be absent or do nothing for Encode and DecodeRaw to be right.
Status CheckSurroundings(const Json& root, const std::string& file) {
  if (!root.is_object()) return InvalidArgument(file + ": is not a JSON object" + kUseCheckpoint);
  if (const auto normalizer = root.find("normalizer"); normalizer != root.end() && !normalizer->is_null()) {
    const bool does_nothing = normalizer->is_object() && normalizer->value("type", Json()) == "Sequence" &&
                              normalizer->value("normalizers", Json()) == Json::array();
    if (!does_nothing) {
      return InvalidArgument(file + ": normalizer is " + normalizer->dump(-1, ' ', true).substr(0, 160) +
                             ", expected null or an empty Sequence" + kUseCheckpoint);
    }
  }
  if (const auto decoder = root.find("decoder"); decoder != root.end() && !decoder->is_null()) {
    if (!decoder->is_object() || decoder->value("type", Json()) != "ByteLevel") {
      return InvalidArgument(file + ": decoder is " + decoder->dump(-1, ' ', true).substr(0, 160) +
                             ", expected null or a ByteLevel" + kUseCheckpoint);
    }
  }
  for (const char* key : {"pre_tokenizer", "model"}) {
    if (!root.contains(key)) return InvalidArgument(file + ": has no " + key + kUseCheckpoint);
  }
  return OkStatus();
}

}  // namespace

struct Tokenizer::Impl {
  struct Token {
    std::string bytes;
    bool added = false, special = false;
  };

  std::string name;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  std::vector<Token> tokens;  // by id; ids without a token have no bytes
  std::unordered_map<std::string, int32_t> ids;
  std::vector<SpecialMatcher> matchers;  // tried in order: what one leaves is searched by the next

  void ReadTokens();
  Status ReadAddedTokens(const Json& root);
  Status CheckAddedToken(const AddedToken& token, const std::string& where) const;
  Status EncodePlain(std::string_view text, Bpe::Scratch* scratch, std::vector<int32_t>* out) const;
  Status EncodeSpecial(std::string_view text, size_t matcher, Bpe::Scratch* scratch,
                       std::vector<int32_t>* out) const;
};

void Tokenizer::Impl::ReadTokens() {
  for (const auto& [spelling, id] : bpe.vocabulary()) {
    if (tokens.size() <= static_cast<size_t>(id)) tokens.resize(id + 1);
    // Special tokens may stand in the vocabulary too, spelled as they are.
    tokens[id].bytes = BytesOfSpelling(spelling).value_or(spelling);
  }
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].bytes.empty()) ids.emplace(tokens[id].bytes, static_cast<int32_t>(id));
  }
}

Status Tokenizer::Impl::CheckAddedToken(const AddedToken& token, const std::string& where) const {
  const auto id_text = std::to_string(token.id);
  if (static_cast<size_t>(token.id) < tokens.size() && tokens[token.id].added) {
    return InvalidArgument(where + " has id " + id_text + ", which an earlier added token has" +
                           kUseCheckpoint);
  }
  const auto& vocabulary = bpe.vocabulary();
  const auto in_vocabulary = vocabulary.find(token.content);
  if (in_vocabulary != vocabulary.end() && in_vocabulary->second != token.id) {
    return InvalidArgument(where + " has id " + id_text + ", but model.vocab gives '" + token.content +
                           "' the id " + std::to_string(in_vocabulary->second) + kUseCheckpoint);
  }
  const bool taken = static_cast<size_t>(token.id) < tokens.size() && !tokens[token.id].bytes.empty();
  if (in_vocabulary == vocabulary.end() && taken) {
    return InvalidArgument(where + " has id " + id_text + ", which model.vocab gives to another token" +
                           kUseCheckpoint);
  }
  // The promise that user text never becomes an added token rests on this.
  if (bpe.CanEmit(token.id)) {
    return InvalidArgument(where + " ('" + token.content +
                           "') is also a byte or a merge, so that plain text could " + "become this token" +
                           kUseCheckpoint);
  }
  return OkStatus();
}

Status Tokenizer::Impl::ReadAddedTokens(const Json& root) {
  std::vector<SpecialMatcher::Entry> literal, normalized;
  const auto added = root.find("added_tokens");
  if (added != root.end() && !added->is_array() && !added->is_null()) {
    return InvalidArgument(name + ": added_tokens must be an array" + kUseCheckpoint);
  }
  std::unordered_map<std::string, int32_t> contents;
  for (size_t i = 0; added != root.end() && i < added->size(); ++i) {
    const std::string where = name + ": added_tokens[" + std::to_string(i) + "]";
    ASSIGN_OR_RETURN(const AddedToken token, ReadAddedToken((*added)[i], where));
    RETURN_IF_ERROR(CheckAddedToken(token, where));
    if (!contents.emplace(token.content, token.id).second) {
      return InvalidArgument(where + " repeats the content '" + token.content + "'" + kUseCheckpoint);
    }
    if (tokens.size() <= static_cast<size_t>(token.id)) tokens.resize(token.id + 1);
    tokens[token.id] = {token.content, /*added=*/true, token.special};
    ids[token.content] = token.id;
    (token.normalized ? normalized : literal).push_back({token.content, token.id});
  }
  // HF tokenizers looks for tokens with `normalized` only in what the others leave, even where nothing is
  // normalized.
  matchers.emplace_back(std::move(literal));
  matchers.emplace_back(std::move(normalized));
  return OkStatus();
}

Status Tokenizer::Impl::EncodePlain(std::string_view text, Bpe::Scratch* scratch,
                                    std::vector<int32_t>* out) const {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> pieces, pre_tokenizer.Split(text));
  for (const std::string_view piece : pieces) bpe.Encode(piece, scratch, out);
  return OkStatus();
}

Status Tokenizer::Impl::EncodeSpecial(std::string_view text, size_t matcher, Bpe::Scratch* scratch,
                                      std::vector<int32_t>* out) const {
  if (matcher == matchers.size()) return EncodePlain(text, scratch, out);
  size_t at = 0;
  while (const auto match = matchers[matcher].Find(text, at)) {
    RETURN_IF_ERROR(EncodeSpecial(text.substr(at, match->begin - at), matcher + 1, scratch, out));
    out->push_back(match->id);
    at = match->begin + match->length;
  }
  return EncodeSpecial(text.substr(at), matcher + 1, scratch, out);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  const StatusOr<std::string> json = ReadNonEmptyFile(path);
  if (json.status().code() == StatusCode::kNotFound)
    return NotFound(path + ": no such file; every checkpoint comes with a tokenizer.json, give its path");
  RETURN_IF_ERROR(json.status());
  return FromJson(*json, path);
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view json, const std::string& name) {
  if (JsonIsDeeperThan(json, kMaxJsonDepth)) {
    return InvalidArgument(name + ": is not a readable tokenizer.json (more than " + std::to_string(kMaxJsonDepth) +
                           " levels of nesting)" + kUseCheckpoint);
  }
  try {
    const Json root = Json::parse(json);
    RETURN_IF_ERROR(CheckSurroundings(root, name));
    ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::FromJson(root["pre_tokenizer"], name));
    ASSIGN_OR_RETURN(Bpe bpe, Bpe::FromJson(root["model"], name));
    auto impl = std::make_unique<Impl>(Impl{name, std::move(pre_tokenizer), std::move(bpe), {}, {}, {}});
    impl->ReadTokens();
    RETURN_IF_ERROR(impl->ReadAddedTokens(root));
    return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
  } catch (const Json::exception& error) {
    return InvalidArgument(name + ": is not a readable tokenizer.json (" + error.what() + ")" +
                           kUseCheckpoint);
  }
}

StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, bool parse_special) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("the text has " + std::to_string(text.size()) + " bytes, at most " +
                           std::to_string(kMaxTextBytes) + " can be encoded at once");
  }
  if (const size_t invalid = FindInvalidUtf8(text); invalid != std::string_view::npos) {
    return InvalidArgument("the text is not valid UTF-8 at byte " + std::to_string(invalid) + "; send UTF-8");
  }
  Bpe::Scratch scratch;
  std::vector<int32_t> out;
  RETURN_IF_ERROR(parse_special ? impl_->EncodeSpecial(text, 0, &scratch, &out)
                                : impl_->EncodePlain(text, &scratch, &out));
  return out;
}

std::string Tokenizer::DecodeRaw(std::span<const int32_t> ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += TokenBytes(id);
  return bytes;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return impl_->tokens[id].bytes;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->tokens[id].special;
}

bool Tokenizer::IsAdded(int32_t id) const { return id >= 0 && id < vocab_size() && impl_->tokens[id].added; }

std::optional<int32_t> Tokenizer::TokenId(std::string_view content) const {
  const auto it = impl_->ids.find(std::string(content));
  if (it == impl_->ids.end()) return std::nullopt;
  return it->second;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->tokens.size()); }

const std::string& Tokenizer::name() const { return impl_->name; }

}  // namespace cachalot
