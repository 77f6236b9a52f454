#include "client/cli/common_flags.h"

#include <charconv>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/base/json_depth.h"
#include "common/config/values.h"
#include "common/discovery/seed.h"

namespace cachalot::cli {
namespace {

/// gRPC would wait for the wrong port or print lines of its own.
Status CheckRouters(const std::string& list) {
  ASSIGN_OR_RETURN(const std::vector<std::string> addresses, ParseList(list));
  for (const std::string& address : addresses)
    if (!address.starts_with("dns:")) RETURN_IF_ERROR(CheckAddress(address));
  return OkStatus();
}

}  // namespace

void Target::AddTo(ConfigSchema& schema) {
  schema.Add("model", &model, "checkpoint directory: run embedded in this process");
  schema.Add("router", &router, "routers, host:port,host:port: run there; when one dies the next goes on",
             [](const std::string& list) { return list.empty() ? OkStatus() : CheckRouters(list); });
  schema.Add("mode", &mode, "numeric mode of the embedded mode; the workers of a router have their own",
             OneOf({"exact", "bf16"}));
  schema.Add("kernels", &kernels, "back end of the embedded mode", OneOf({"auto", "cpu", "ref"}));
  schema.Add("threads", &threads, "compute threads of the embedded mode", Range(1, 256));
  schema.Check([this, &schema] {
    if (model.empty() == router.empty())
      return InvalidArgument("give exactly one of --model DIR and --router HOST:PORT");
    for (const char* name : {"mode", "kernels", "threads"})
      if (!embedded() && schema.Given(name))
        return InvalidArgument("--" + std::string(name) +
                               ": the workers behind --router have their own; leave it out");
    return OkStatus();
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

StatusOr<std::vector<std::pair<int32_t, float>>> ParseLogitBias(const std::string& text,
                                                                const std::string& where) {
  std::vector<std::pair<int32_t, float>> biases;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const char *first = text.data() + at, *last = text.data() + end;
    std::pair<int32_t, float> entry;
    const auto id = std::from_chars(first, last, entry.first);
    bool good = id.ec == std::errc() && id.ptr != last && *id.ptr == ':';
    if (good) {
      const auto bias = std::from_chars(id.ptr + 1, last, entry.second);
      good = bias.ec == std::errc() && bias.ptr == last;
    }
    if (!good) return InvalidArgument(where + ": wanted id:bias, got \"" + text.substr(at, end - at) + "\"");
    biases.push_back(entry);
    at = end + 1;
  }
  return biases;
}

namespace {

StatusOr<std::vector<std::string>> ParseJsonStrings(const std::string& text, const std::string& where) {
  if (JsonIsDeeperThan(text, kMaxJsonDepth))
    return InvalidArgument(where + ": wanted a JSON array of strings, got more than " + std::to_string(kMaxJsonDepth) +
                           " levels of nesting");
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_array()) return InvalidArgument(where + ": wanted a JSON array of strings, got " + text);
  std::vector<std::string> strings;
  for (const auto& entry : json) {
    if (!entry.is_string())
      return InvalidArgument(where + ": wanted strings in the JSON array, got " + entry.dump());
    strings.push_back(entry.get<std::string>());
  }
  return strings;
}

}  // namespace

StatusOr<std::vector<std::string>> ParseStrings(const std::string& text, const std::string& where) {
  if (text.empty()) return std::vector<std::string>();
  if (text[0] == '[') return ParseJsonStrings(text, where);
  std::vector<std::string> strings(1);
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == ',') {
      strings.emplace_back();
    } else if (text[at] != '\\') {
      strings.back().push_back(text[at]);
    } else {
      const char escaped = ++at < text.size() ? text[at] : '\0';
      if (escaped == 'n' || escaped == 't') {
        strings.back().push_back(escaped == 'n' ? '\n' : '\t');
      } else if (escaped == '\\' || escaped == ',' || escaped == '[') {
        strings.back().push_back(escaped);
      } else {
        return InvalidArgument(where + ": wanted \\\\, \\,, \\[, \\n or \\t at byte " +
                               std::to_string(at - 1) + " of \"" + text + "\"");
      }
    }
  }
  return strings;
}

}  // namespace cachalot::cli
