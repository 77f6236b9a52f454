#include "common/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

namespace cachalot {
namespace {

constexpr int kAlphabetEnd = 0x144;  // the last byte without a printable Latin-1 character is spelled U+0143

bool SpellsItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

struct Alphabet {
  std::array<uint16_t, 256> character;     // byte -> code point
  std::array<int16_t, kAlphabetEnd> byte;  // code point -> byte, or -1

  Alphabet() {
    byte.fill(-1);
    int next = 0x100;
    for (int b = 0; b < 256; ++b) {
      character[b] = static_cast<uint16_t>(SpellsItself(b) ? b : next++);
      byte[character[b]] = static_cast<int16_t>(b);
    }
  }
};

const Alphabet& TheAlphabet() {
  static const Alphabet alphabet;
  return alphabet;
}

}  // namespace

std::string AlphabetSymbol(unsigned char byte) {
  const int c = TheAlphabet().character[byte];
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  return {static_cast<char>(0xC0 | (c >> 6)), static_cast<char>(0x80 | (c & 0x3F))};
}

std::optional<std::string> BytesOfSpelling(std::string_view spelling) {
  std::string bytes;
  for (size_t i = 0; i < spelling.size(); ++i) {
    int c = static_cast<unsigned char>(spelling[i]);
    if (c >= 0x80) {
      // Every character of the alphabet has at most two bytes of UTF-8.
      if ((c & 0xE0) != 0xC0 || i + 1 == spelling.size()) return std::nullopt;
      c = ((c & 0x1F) << 6) | (static_cast<unsigned char>(spelling[++i]) & 0x3F);
    }
    if (c >= kAlphabetEnd || TheAlphabet().byte[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(TheAlphabet().byte[c]));
  }
  return bytes;
}

}  // namespace cachalot
