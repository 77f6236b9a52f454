#pragma once
// GPT-2's alphabet: tokenizer files spell every byte as one printable character, so that vocabulary entries
// are text.

#include <optional>
#include <string>
#include <string_view>

namespace cachalot {

/// The character (as UTF-8) that stands for `byte`.
std::string AlphabetSymbol(unsigned char byte);

/// The bytes spelled by `spelling`, or nothing if it has a character outside the alphabet.
std::optional<std::string> BytesOfSpelling(std::string_view spelling);

}  // namespace cachalot
