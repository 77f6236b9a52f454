#pragma once
// Text <-> token ids with a checkpoint's tokenizer.json (byte-level BPE, DeepSeek's pre-tokenizer).
// Everything here is immutable after Load and may be used from any thread. Chat structure is chat_format.h,
// streaming stream_decoder.h.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

class Tokenizer {
 public:
  /// Reads a tokenizer.json. NotFound if there is none, InvalidArgument if it is empty, cannot be read or is not what
  /// this class implements; both name the file.
  static StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);

  /// The same from the file's content; `name` stands for the path in errors.
  static StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view json, const std::string& name);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// The ids of `text`, nothing added. With `parse_special` the texts of added tokens become those tokens
  /// (leftmost, longest); without it no added token can come out, whatever the text says. InvalidArgument
  /// with the byte offset for invalid UTF-8, and for more than 64 MiB.
  StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const;

  /// The bytes of all tokens, special ones included; not always valid UTF-8 (see stream_decoder.h).
  std::string DecodeRaw(std::span<const int32_t> ids) const;

  /// The bytes of one token; empty for an id without a token (models pad their vocabulary beyond the
  /// tokenizer's).
  std::string_view TokenBytes(int32_t id) const;

  /// Whether the file calls the token special: such tokens are no part of the text shown to a user.
  bool IsSpecial(int32_t id) const;

  /// Whether the token is one of `added_tokens`, which plain text never encodes to.
  bool IsAdded(int32_t id) const;

  /// The token with these bytes, added tokens first.
  std::optional<int32_t> TokenId(std::string_view content) const;

  /// One more than the largest id.
  int32_t vocab_size() const;

  /// Where this came from, for messages.
  const std::string& name() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cachalot
