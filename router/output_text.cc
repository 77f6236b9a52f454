#include "router/output_text.h"

#include <utility>

#include "common/base/check.h"

namespace cachalot {

Status ValidateOutputOptions(const OutputOptions& options, bool has_tokenizer) {
  if (options.n < 1 || options.n > kMaxChoices)
    return InvalidArgument("n: wanted 1 to " + std::to_string(kMaxChoices) + ", got " +
                           std::to_string(options.n));
  RETURN_IF_ERROR(ValidateStopStrings(options.stop));
  if (!options.stop.empty() && !has_tokenizer)
    return FailedPrecondition("stop: this model has no tokenizer: give stop_token_ids");
  return OkStatus();
}

OutputText::OutputText(const Tokenizer* tokenizer, std::vector<std::string> stop, int min_tokens)
    : scanner_(std::move(stop)), min_tokens_(min_tokens) {
  if (tokenizer) decoder_.emplace(tokenizer);
}

std::string OutputText::Push(int32_t token) {
  CHECK(!stopped());
  const bool may_stop = ++tokens_ > min_tokens_;
  return decoder_ ? scanner_.Push(decoder_->Push(token), may_stop) : std::string();
}

std::string OutputText::Finish() {
  std::string text = scanner_.Finish();
  // Bytes of an unfinished character behind a match are not part of the output.
  return decoder_ && !stopped() ? text + decoder_->Finish() : text;
}

}  // namespace cachalot
