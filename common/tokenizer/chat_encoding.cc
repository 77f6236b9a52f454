#include "common/tokenizer/chat_encoding.h"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "common/tokenizer/python_constants.h"
#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;
constexpr char kUseCheckpoint[] = "; use the file that came with the checkpoint";

/// Appends `format` as Python's str.format does: {{ and }} are braces, {name} is what `fill` appends for it.
/// False for a name that `fill` does not know and for a lone brace.
bool Format(std::string_view format, ChatPrompt* prompt, const std::function<bool(std::string_view)>& fill) {
  while (!format.empty()) {
    const size_t brace = format.find_first_of("{}");
    prompt->Text(format.substr(0, brace));
    if (brace == std::string_view::npos) return true;
    format.remove_prefix(brace);
    if (format.size() > 1 && format[1] == format[0]) {
      prompt->Text(format.substr(0, 1));
      format.remove_prefix(2);
      continue;
    }
    const size_t end = format.find('}');
    if (format[0] == '}' || end == std::string_view::npos || !fill(format.substr(1, end - 1))) return false;
    format.remove_prefix(end + 1);
  }
  return true;
}

}  // namespace

ChatTextHashes ChatTextHashes::Released() {
  return {.tools = "09b7269daaddbeaf11a3ed55c07b1846c35162b841d8b4301bbe0449879d1fd8",
          .response_format = "012f31fcc1338bdfe25b132eaf56ab020ee75ab8e649f37b30b8e5f544fb17a5",
          .effort_absolute = "f7a24f3b3050d4a83781e9b755b316aae2ec1d9dc87562541d90bcb04d7350f7",
          .effort_beyond = "53fb31b8392ec5b4a926481943efc67636748f137c1a49d493a7af4d4fa55d2c"};
}

ChatEncoding ChatEncoding::Missing(std::string path) {
  ChatEncoding encoding(std::move(path));
  encoding.tools_.problem = encoding.response_format_.problem =
      "the file is missing; put it beside the weights, every DeepSeek-V4 checkpoint comes with it";
  return encoding;
}

StatusOr<ChatEncoding> ChatEncoding::FromSource(std::string_view source, std::string path,
                                                const Sha256Function& sha256, const ChatTextHashes& hashes) {
  if (source.size() > kMaxFileBytes || FindInvalidUtf8(source) != std::string_view::npos) {
    return InvalidArgument(path + ": is not UTF-8 or has more than 1 MiB" + kUseCheckpoint);
  }
  const PythonConstants constants = PythonConstants::Parse(source);
  ChatEncoding encoding(std::move(path));
  const auto checked = [&](const std::string* text, const std::string& name, const std::string& hash) {
    if (text == nullptr) return Text{"", "it has no " + name + kUseCheckpoint};
    const std::string found = sha256(*text);
    if (found == hash) return Text{*text, ""};
    return Text{"", "its " + name + " has the sha256 " + found + ", expected " + hash + kUseCheckpoint};
  };
  encoding.tools_ = checked(constants.FindString("TOOLS_TEMPLATE"), "TOOLS_TEMPLATE", hashes.tools);
  encoding.response_format_ = checked(constants.FindString("response_format_template"),
                                      "response_format_template", hashes.response_format);
  const PythonConstants::Dict* levels = constants.FindDict("REASONING_EFFORT_PROMPTS");
  const std::string* default_level = constants.FindString("DEFAULT_REASONING_EFFORT");
  if (levels != nullptr && default_level != nullptr) {
    encoding.generation_ = Generation::kLeveled;
    encoding.default_level_ = *default_level;
    for (const auto& [name, text] : *levels) {
      const std::string where = "REASONING_EFFORT_PROMPTS[\"" + name + "\"]";
      const std::string& hash = name == "max" ? hashes.effort_beyond : hashes.effort_absolute;
      encoding.levels_.push_back({name, text.empty() ? Text{} : checked(&text, where, hash)});
    }
    if (encoding.FindLevel("") == nullptr) {
      return InvalidArgument(encoding.path_ + ": the default effort '" + *default_level +
                             "' is none of REASONING_EFFORT_PROMPTS" + kUseCheckpoint);
    }
  } else if (const std::string* max = constants.FindString("REASONING_EFFORT_MAX")) {
    encoding.generation_ = Generation::kPreview;
    encoding.default_level_ = "high";
    encoding.levels_ = {{"high", {}}, {"max", checked(max, "REASONING_EFFORT_MAX", hashes.effort_absolute)}};
  } else {
    return InvalidArgument(encoding.path_ +
                           ": has neither REASONING_EFFORT_PROMPTS with DEFAULT_REASONING_EFFORT nor "
                           "REASONING_EFFORT_MAX, so it is no DeepSeek-V4 encoder" +
                           kUseCheckpoint);
  }
  return encoding;
}

StatusOr<ChatEncoding> ChatEncoding::Load(const std::string& model_directory, const Sha256Function& sha256,
                                          const ChatTextHashes& hashes) {
  const std::string path = (std::filesystem::path(model_directory) / kChatEncodingFile).string();
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return Missing(path);
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  if (!file.is_open() || !content) return InvalidArgument(path + ": cannot be read or is empty");
  return FromSource(content.str(), path, sha256, hashes);
}

Status ChatEncoding::Usable(const Text& text) const {
  if (text.problem.empty()) return OkStatus();
  return FailedPrecondition("this request needs a text from " + path_ + ", but " + text.problem);
}

const ChatEncoding::Level* ChatEncoding::FindLevel(std::string_view effort) const {
  const std::string_view wanted = effort.empty() ? std::string_view(default_level_) : effort;
  for (const Level& level : levels_) {
    if (level.name == wanted) return &level;
  }
  return nullptr;
}

Status ChatEncoding::CheckEffort(std::string_view effort) const {
  if (effort.empty() || FindLevel(effort) != nullptr) return OkStatus();
  std::string known;
  for (const Level& level : levels_) known += (known.empty() ? "'" : ", '") + level.name + "'";
  if (generation_ == Generation::kUnknown) {
    if (effort == "low" || effort == "high" || effort == "max") return OkStatus();
    known = "'low', 'high', 'max'";
  }
  return InvalidArgument("the reasoning effort is '" + std::string(effort) + "'; this checkpoint has " +
                         known);
}

StatusOr<std::string> ChatEncoding::EffortPrefix(std::string_view effort) const {
  RETURN_IF_ERROR(CheckEffort(effort));
  const Level* level = FindLevel(effort);
  if (level == nullptr) {
    // No default has a text in any generation, nor has "low"; what the others mean only the file says.
    if (effort.empty() || effort == "low") return std::string();
    return Usable(tools_);
  }
  RETURN_IF_ERROR(Usable(level->prefix));
  return level->prefix.text;
}

Status ChatEncoding::RenderTools(std::string_view schemas, ChatPrompt* prompt) const {
  RETURN_IF_ERROR(Usable(tools_));
  const bool known = Format(tools_.text, prompt, [&](std::string_view name) {
    if (name == "tool_schemas") {
      prompt->Text(schemas);
    } else if (name == "dsml_token") {
      prompt->Mark(kDsmlToken);
    } else if (name == "thinking_start_token") {
      prompt->Mark(kThinkBeginToken);
    } else if (name == "thinking_end_token") {
      prompt->Mark(kThinkEndToken);
    } else {
      return false;
    }
    return true;
  });
  return known ? OkStatus() : FailedPrecondition(path_ + ": TOOLS_TEMPLATE has an unknown placeholder");
}

Status ChatEncoding::RenderResponseFormat(std::string_view schema, ChatPrompt* prompt) const {
  RETURN_IF_ERROR(Usable(response_format_));
  const bool known = Format(response_format_.text, prompt, [&](std::string_view name) {
    prompt->Text(name == "schema" ? schema : "");
    return name == "schema";
  });
  return known ? OkStatus()
               : FailedPrecondition(path_ + ": response_format_template has an unknown placeholder");
}

}  // namespace cachalot
