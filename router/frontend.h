#pragma once
// What the router knows of the model: its tokenizer and its limits. Immutable; built from a directory or from
// what a worker serves.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cachalot/v1/admin.pb.h"
#include "cachalot/v1/cluster.pb.h"
#include "cachalot/v1/generation.pb.h"
#include "common/tokenizer/chat_message.h"
#include "common/tokenizer/stream_decoder.h"
#include "common/tokenizer/tokenizer.h"
#include "router/admission.h"
#include "router/output_text.h"

namespace cachalot {

/// What a request asks about in words.
struct PromptText {
  std::string text;                   // when there are no messages
  std::vector<ChatMessage> messages;  // of a chat
  bool chat = false;

  static PromptText Of(const std::string& text) { return {text, {}, false}; }
  static PromptText Of(const v1::Chat& chat);
  size_t Bytes() const;
  /// Bytes to go through when it is tokenized: a message has work of its own, be it empty.
  size_t Work() const { return Bytes() + 64 * messages.size(); }
};

/// FAILED_PRECONDITION when the files in a router's own directory are of another model than its workers': ids, limits
/// and ends of outputs would be wrong without a word. `own` may have a tokenizer where the workers have none.
Status CheckOwnFiles(const v1::GetModelAssetsResponse& own, const v1::GetModelAssetsResponse& workers);

class Frontend {
 public:
  /// `mode`: the workers' numeric mode, for GetModelInfo. `compat`: what outputs depend on beside the request,
  /// for clients that go on at another router; "" when that is not known.
  static StatusOr<std::unique_ptr<Frontend>> Make(const v1::GetModelAssetsResponse& assets,
                                                  const std::string& mode = "exact",
                                                  const std::string& compat = "");

  const ModelLimits& limits() const { return limits_; }
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  const v1::ModelInfo& info() const { return info_; }
  const std::string& compat() const { return compat_; }

  /// Any thread. FAILED_PRECONDITION when text meets a model without a tokenizer.
  StatusOr<std::vector<int32_t>> Encode(const PromptText& text) const;
  /// OUT_OF_RANGE for a chat of more messages than the context has tokens.
  Status CheckMessages(const v1::Chat& chat) const;
  /// OUT_OF_RANGE for text that must have more tokens than the context, however well it is tokenized.
  Status CheckLength(const PromptText& text) const;

  /// An admitted sequence from a public request and the ids of its text, if it has text: defaults, a drawn seed, a
  /// made-up id.
  StatusOr<SequenceState> Admit(const v1::GenerateRequest& request, std::vector<int32_t> prompt) const;
  /// The same for the logits of given ids: the last `decode` of them are forced, one more behind them ends it.
  StatusOr<SequenceState> AdmitLogits(const v1::LogitsRequest& request) const;
  /// The rest of a GenerateRequest, admitted too.
  StatusOr<OutputOptions> AdmitOutput(const v1::GenerateRequest& request) const;

 private:
  Frontend() = default;
  std::unique_ptr<Tokenizer> tokenizer_;
  size_t longest_token_ = 0;  // bytes
  ModelLimits limits_;
  v1::ModelInfo info_;
  std::string compat_;
};

}  // namespace cachalot
