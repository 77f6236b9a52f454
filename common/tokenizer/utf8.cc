#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Bytes in the sequence that `lead` opens; 0 if nothing valid starts with it.
int SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;  // continuation bytes, and the leads of overlong two-byte forms
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

/// Whether `byte` may stand at `index` >= 1 of the sequence opened by `lead`. Only the second byte depends on
/// the lead.
bool Continues(uint8_t lead, int index, uint8_t byte) {
  uint8_t low = 0x80, high = 0xBF;
  if (index == 1) {
    if (lead == 0xE0) low = 0xA0;   // overlong
    if (lead == 0xED) high = 0x9F;  // surrogates
    if (lead == 0xF0) low = 0x90;   // overlong
    if (lead == 0xF4) high = 0x8F;  // above U+10FFFF
  }
  return low <= byte && byte <= high;
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const uint8_t lead = static_cast<uint8_t>(text[at]);
    const int length = SequenceLength(lead);
    if (length == 0 || text.size() - at < static_cast<size_t>(length)) return at;
    for (int i = 1; i < length; ++i) {
      if (!Continues(lead, i, static_cast<uint8_t>(text[at + i]))) return at;
    }
    at += length;
  }
  return std::string_view::npos;
}

bool AppendUtf8(char32_t c, std::string* out) {
  const auto tail = [&](int shift) { out->push_back(static_cast<char>(0x80 | ((c >> shift) & 0x3F))); };
  if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return false;
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return true;
  }
  if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    tail(6);
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    tail(12);
    tail(6);
  }
  tail(0);
  return true;
}

void Utf8Repair::Append(std::string_view bytes, std::string* out) {
  for (const char c : bytes) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (count_ > 0) {
      const uint8_t lead = static_cast<uint8_t>(held_[0]);
      if (Continues(lead, count_, byte)) {
        held_[count_++] = c;
        if (count_ == SequenceLength(lead)) {
          out->append(held_, count_);
          count_ = 0;
        }
        continue;
      }
      // The held bytes can no longer become a character; `byte` may well start one.
      out->append(kReplacement);
      count_ = 0;
    }
    const int length = SequenceLength(byte);
    if (length == 1) {
      out->push_back(c);
    } else if (length == 0) {
      out->append(kReplacement);
    } else {
      held_[count_++] = c;
    }
  }
}

void Utf8Repair::Finish(std::string* out) {
  if (count_ > 0) out->append(kReplacement);
  count_ = 0;
}

}  // namespace cachalot
