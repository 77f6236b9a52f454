#pragma once
// Inputs that are a list of messages: each a byte that says what it is, two bytes of length, little-endian,
// and the message. A length beyond the end is cut there, so that any bytes are a list.

#include <google/protobuf/message_lite.h>

#include <algorithm>

#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {

struct Record {
  uint8_t kind = 0;
  std::string_view bytes;
};

inline std::vector<Record> ReadRecords(std::string_view input, size_t most) {
  std::vector<Record> records;
  while (input.size() >= 3 && records.size() < most) {
    const size_t length = static_cast<uint8_t>(input[1]) | static_cast<size_t>(static_cast<uint8_t>(input[2]))
                                                               << 8;
    records.push_back({static_cast<uint8_t>(input[0]), input.substr(3, length)});
    input.remove_prefix(std::min(input.size(), 3 + length));
  }
  return records;
}

inline void AddRecord(std::string* input, uint8_t kind, const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  CHECK(bytes.size() < 1 << 16);
  *input += static_cast<char>(kind);
  *input += static_cast<char>(bytes.size());
  *input += static_cast<char>(bytes.size() >> 8);
  *input += bytes;
}

}  // namespace cachalot::fuzz
