#include "common/tokenizer/stream_decoder.h"

namespace cachalot {

std::string StreamDecoder::Push(int32_t id) {
  std::string text;
  if (special_ == SpecialTokens::kShow || !tokenizer_->IsSpecial(id)) {
    repair_.Append(tokenizer_->TokenBytes(id), &text);
  }
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text;
  repair_.Finish(&text);
  return text;
}

std::string DecodeText(const Tokenizer& tokenizer, std::span<const int32_t> ids, SpecialTokens special) {
  StreamDecoder decoder(&tokenizer, special);
  std::string text;
  for (const int32_t id : ids) text += decoder.Push(id);
  return text + decoder.Finish();
}

}  // namespace cachalot
