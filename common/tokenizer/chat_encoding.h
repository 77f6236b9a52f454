#pragma once
// The long fixed texts of the chat format. They belong to the checkpoint, not to this program: they are read
// from its encoding/encoding_dsv4.py (as data, the file is never run) and used only if their SHA-256 is
// known, so that a changed prompt is an error and not a silently worse model.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/tokenizer/chat_prompt.h"

namespace cachalot {

inline constexpr std::string_view kChatEncodingFile = "encoding/encoding_dsv4.py";

/// 64 lower-case hex digits. Passed in because the program's SHA-256 lies in a library beside this one.
using Sha256Function = std::function<std::string(std::string_view)>;

/// What the texts must hash to.
struct ChatTextHashes {
  std::string tools;            // TOOLS_TEMPLATE, before formatting
  std::string response_format;  // response_format_template, before formatting
  std::string effort_absolute;  // "max" of preview checkpoints, "high" of later ones
  std::string effort_beyond;    // "max" of later checkpoints

  /// Those of the released checkpoints.
  static ChatTextHashes Released();
};

class ChatEncoding {
 public:
  /// Encoders differ in their levels of reasoning effort: preview has high (the default, no text) and max;
  /// later ones have low, high and max and name their default.
  enum class Generation { kUnknown, kPreview, kLeveled };

  /// Of a checkpoint without the file, or before it is known. `path` is named by requests that need a text.
  static ChatEncoding Missing(std::string path);

  /// From the file's content; `path` stands for it in errors. InvalidArgument if that is no encoder of this
  /// format. A text with an unknown hash is no error before it is used.
  static StatusOr<ChatEncoding> FromSource(std::string_view source, std::string path,
                                           const Sha256Function& sha256,
                                           const ChatTextHashes& hashes = ChatTextHashes::Released());

  /// From a model directory; Missing if the file is not there.
  static StatusOr<ChatEncoding> Load(const std::string& model_directory, const Sha256Function& sha256,
                                     const ChatTextHashes& hashes = ChatTextHashes::Released());

  Generation generation() const { return generation_; }

  /// InvalidArgument with the checkpoint's levels if `effort` is none of them. Empty is the default.
  Status CheckEffort(std::string_view effort) const;

  /// What stands before the first message when thinking. FailedPrecondition if the text is not to be had.
  StatusOr<std::string> EffortPrefix(std::string_view effort) const;

  /// Appends the block that tells the model its tools; `schemas` has one JSON text a line. FailedPrecondition
  /// as above.
  Status RenderTools(std::string_view schemas, ChatPrompt* prompt) const;

  /// Appends the block that tells the model the schema of its answer.
  Status RenderResponseFormat(std::string_view schema, ChatPrompt* prompt) const;

 private:
  struct Text {
    std::string text;
    std::string problem;  // why it may not be used; empty: it may
  };
  struct Level {
    std::string name;
    Text prefix;
  };

  explicit ChatEncoding(std::string path) : path_(std::move(path)) {}

  Status Usable(const Text& text) const;
  const Level* FindLevel(std::string_view effort) const;

  std::string path_;
  Generation generation_ = Generation::kUnknown;
  std::vector<Level> levels_;
  std::string default_level_;
  Text tools_, response_format_;
};

}  // namespace cachalot
