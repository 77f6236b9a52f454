// Ids of many strings, for parity.py: encode_strings TOKENIZER.json < records > lines.
// A record is one byte ('s': special tokens are parsed, 'p': everything is plain text), the length as four
// bytes, little-endian, and the string. Each gives one line: ids separated by blanks, or "refused".

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <string>

#include "common/base/bytes.h"
#include "common/tokenizer/tokenizer.h"

namespace cachalot {
namespace {

int Main(const char* path) {
  const auto tokenizer = Tokenizer::Load(path);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", StatusMessage(tokenizer.status()).c_str());
    return 1;
  }
  const std::string input(std::istreambuf_iterator<char>(std::cin), {});
  ByteReader reader(std::as_bytes(std::span(input.data(), input.size())));
  std::string line;
  while (reader.remaining() > 0) {
    const char mode = reader.Read<char>();
    const auto bytes = reader.Take(reader.Read<uint32_t>());
    if (!reader.ok()) return 2;
    const auto ids =
        (*tokenizer)->Encode({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, mode == 's');
    line = ids.ok() ? "" : "refused";
    if (ids.ok()) {
      for (const int32_t id : *ids) line += std::to_string(id) + " ";
    }
    std::puts(line.c_str());
  }
  return 0;
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: encode_strings TOKENIZER.json\n");
    return 2;
  }
  return cachalot::Main(argv[1]);
}
