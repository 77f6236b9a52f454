#include "client/cli/common_flags.h"

#include <charconv>
#include <fstream>
#include <sstream>

namespace cachalot::cli {

void Target::AddTo(ConfigSchema& schema) {
  schema.Add("model", &model, "checkpoint directory: run embedded in this process");
  schema.Add("router", &router, "host:port of a router: run there");
  schema.Add("mode", &mode, "numeric mode of the embedded mode; a router has its own", OneOf({"exact", "bf16"}));
  schema.Add("kernels", &kernels, "back end of the embedded mode", OneOf({"auto", "cpu", "ref"}));
  schema.Add("threads", &threads, "compute threads of the embedded mode", Range(1, 256));
  schema.Check([this] {
    return model.empty() == router.empty() ? InvalidArgument("give exactly one of --model DIR and --router HOST:PORT")
                                           : OkStatus();
  });
}

void IdsInput::AddTo(ConfigSchema& schema) {
  schema.Add("ids", &ids, "token ids, 1,2,3");
  schema.Add("ids-file", &file, "file of token ids, separated by commas or white space");
  schema.Check([this] {
    return !ids.empty() && !file.empty() ? InvalidArgument("give one of --ids and --ids-file, not both") : OkStatus();
  });
}

StatusOr<std::vector<int32_t>> IdsInput::Read() const {
  if (file.empty()) return ParseIds(ids, "--ids");
  std::ifstream in(file);
  if (!in) return NotFound("--ids-file " + file + ": cannot be read");
  std::stringstream text;
  text << in.rdbuf();
  return ParseIds(text.str(), file);
}

StatusOr<std::vector<int32_t>> ParseIds(const std::string& text, const std::string& where) {
  constexpr const char* kSeparators = ", \t\r\n";
  std::vector<int32_t> ids;
  for (size_t at = text.find_first_not_of(kSeparators); at != std::string::npos;
       at = text.find_first_not_of(kSeparators, at)) {
    const size_t end = std::min(text.find_first_of(kSeparators, at), text.size());
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(text.data() + at, text.data() + end, id);
    if (error != std::errc() || stop != text.data() + end)
      return InvalidArgument(where + ": \"" + text.substr(at, end - at) + "\" is no token id");
    ids.push_back(id);
    at = end;
  }
  if (ids.empty()) return InvalidArgument(where + ": no token ids in it");
  return ids;
}

}  // namespace cachalot::cli
