#include "common/config/schema.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <utility>

#include "common/base/address.h"
#include "common/base/check.h"
#include "common/config/values.h"
#include "yaml-cpp/yaml.h"

namespace cachalot {
namespace {

// YAML keys may be written with '_'.
std::string Canonical(std::string_view name) {
  std::string canonical(name);
  std::replace(canonical.begin(), canonical.end(), '_', '-');
  return canonical;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// A setter that parses, validates, and only then writes the field.
template <typename T, typename Parse>
std::function<Status(const std::string&)> Setter(T* field, Validator<T> valid, Parse parse) {
  return [=](const std::string& text) -> Status {
    auto value = parse(text);
    if (!value.ok()) return value.status();
    T typed = static_cast<T>(std::move(*value));
    if (valid) RETURN_IF_ERROR(valid(typed));
    *field = std::move(typed);
    return OkStatus();
  };
}

template <typename T>
StatusOr<int64_t> ParseAs(const std::string& text) {
  return ParseInteger(text, std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
}

StatusOr<std::string> YamlText(const YAML::Node& node, bool is_list) {
  if (node.IsScalar()) return node.Scalar();
  if (!node.IsSequence() || !is_list)
    return InvalidArgument(is_list ? "expected a list" : "expected one value");
  std::vector<std::string> items;
  for (const YAML::Node& item : node) {
    if (!item.IsScalar()) return InvalidArgument("expected a list of plain values");
    if (item.Scalar().find(',') != std::string::npos)
      return InvalidArgument("an item may not contain a comma");
    items.push_back(item.Scalar());
  }
  return ListText(items);
}

StatusOr<YAML::Node> LoadYaml(const std::string& path) {
  try {
    YAML::Node root = YAML::LoadFile(path);
    if (!root.IsNull() && !root.IsMap()) return InvalidArgument(path + ": expected `name: value` lines");
    return root;
  } catch (const YAML::BadFile&) {
    return InvalidArgument("--config: cannot read '" + path + "'");
  } catch (const std::exception& error) {  // of YAML, or of the stream: a directory
    return InvalidArgument(path + ": " + error.what());
  }
}

}  // namespace

template <typename T>
Validator<T> Range(T least, T most) {
  return [=](const T& value) {
    if (least <= value && value <= most) return OkStatus();
    const auto text = [](T number) { return NumberText(static_cast<double>(number)); };
    return InvalidArgument("expected " + text(least) + " to " + text(most) + ", got " + text(value));
  };
}
template Validator<int> Range(int, int);
template Validator<int64_t> Range(int64_t, int64_t);
template Validator<double> Range(double, double);

Validator<std::string> OneOf(std::vector<std::string> words) {
  return [words = std::move(words)](const std::string& value) {
    if (std::find(words.begin(), words.end(), value) != words.end()) return OkStatus();
    return InvalidArgument("expected one of " + ListText(words) + ", got '" + value + "'");
  };
}

Validator<std::string> NotEmpty() {
  return [](const std::string& value) {
    return value.empty() ? InvalidArgument("must not be empty") : OkStatus();
  };
}

Validator<Duration> AtLeastMilliseconds(int64_t least) {
  return [=](const Duration& value) {
    if (value >= std::chrono::milliseconds(least)) return OkStatus();
    return InvalidArgument("expected " + std::to_string(least) + " or more, got " +
                           NumberText(static_cast<double>(value.count()) / 1e6));
  };
}

Validator<std::string> OrEmpty(Validator<std::string> valid) {
  return [valid = std::move(valid)](const std::string& value) { return value.empty() ? OkStatus() : valid(value); };
}

Validator<std::string> ListenForm() {
  return [](const std::string& value) { return ParseListenAddress(value).status(); };
}

Validator<std::string> HostPortForm() {
  return [](const std::string& value) {
    const StatusOr<ListenAddress> address = ParseListenAddress(value);
    return address.ok() && !address->is_unix()
               ? OkStatus()
               : InvalidArgument("expected host:port with a port of 0 to 65535, got \"" + value + "\"");
  };
}

ConfigSchema::ConfigSchema(std::string program, std::string summary)
    : program_(std::move(program)), summary_(std::move(summary)) {
  Add("config", &config_file_, "YAML file with any of these settings; flags win over it");
}

ConfigSchema::Entry& ConfigSchema::AddEntry(const std::string& name, const std::string& kind,
                                            const std::string& help) {
  CHECK_MSG(Find(name) == nullptr, "two settings named " + name);
  CHECK_MSG(!name.empty() && !name.starts_with("no-") && name != "help" &&
                name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos,
            "a bad setting name: " + name);
  Entry& entry = entries_.emplace_back();
  entry.name = name;
  entry.kind = kind;
  entry.help = help;
  return entry;
}

void ConfigSchema::Add(const std::string& name, std::string* field, const std::string& help,
                       Validator<std::string> valid) {
  Entry& entry = AddEntry(name, "text", help);
  entry.set =
      Setter(field, std::move(valid), [](const std::string& text) { return StatusOr<std::string>(text); });
  entry.show = [field] { return *field; };
}

void ConfigSchema::Add(const std::string& name, int* field, const std::string& help, Validator<int> valid) {
  Entry& entry = AddEntry(name, "integer", help);
  entry.set = Setter(field, std::move(valid), ParseAs<int>);
  entry.show = [field] { return std::to_string(*field); };
}

void ConfigSchema::Add(const std::string& name, int64_t* field, const std::string& help,
                       Validator<int64_t> valid) {
  Entry& entry = AddEntry(name, "integer", help);
  entry.set = Setter(field, std::move(valid), ParseAs<int64_t>);
  entry.show = [field] { return std::to_string(*field); };
}

void ConfigSchema::Add(const std::string& name, double* field, const std::string& help,
                       Validator<double> valid) {
  Entry& entry = AddEntry(name, "number", help);
  entry.set = Setter(field, std::move(valid), ParseNumber);
  entry.show = [field] { return NumberText(*field); };
}

void ConfigSchema::Add(const std::string& name, bool* field, const std::string& help) {
  Entry& entry = AddEntry(name, "bool", help);
  entry.is_bool = true;
  entry.set = Setter(field, Validator<bool>(), ParseBool);
  entry.show = [field] { return std::string(*field ? "true" : "false"); };
}

void ConfigSchema::Add(const std::string& name, std::vector<std::string>* field, const std::string& help,
                       Validator<std::vector<std::string>> valid) {
  Entry& entry = AddEntry(name, "list", help);
  entry.is_list = true;
  entry.set = Setter(field, std::move(valid), ParseList);
  entry.show = [field] { return ListText(*field); };
}

void ConfigSchema::AddMilliseconds(const std::string& name, Duration* field, const std::string& help,
                                   Validator<Duration> valid) {
  Entry& entry = AddEntry(name, "milliseconds", help);
  entry.set = Setter(field, std::move(valid), ParseMilliseconds);
  entry.show = [field] { return NumberText(static_cast<double>(field->count()) / 1e6); };
}

void ConfigSchema::Forward(const std::string& prefix, ConfigSchema& inner, std::map<std::string, std::string>* given,
                           const std::map<std::string, std::string>& refused) {
  for (const Entry& entry : inner.entries_) {
    Entry& outer = AddEntry(prefix + "-" + entry.name, entry.kind, entry.help);
    outer.is_bool = entry.is_bool;
    outer.is_list = entry.is_list;
    outer.forwarded_to = inner.program_;
    outer.show = entry.show;
    outer.set = [name = entry.name, set = entry.set, given](const std::string& text) -> Status {
      RETURN_IF_ERROR(set(text));
      given->insert_or_assign(name, text);
      return OkStatus();
    };
    if (const auto found = refused.find(entry.name); found != refused.end()) outer.refused = found->second;
  }
}

void ConfigSchema::Check(std::function<Status()> check) { checks_.push_back(std::move(check)); }

void ConfigSchema::Require(const std::string& name) {
  CHECK_MSG(Find(name) != nullptr, name);
  Find(name)->required = true;
}

ConfigSchema::Entry* ConfigSchema::Find(std::string_view name) {
  for (Entry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const ConfigSchema::Entry* ConfigSchema::Find(std::string_view name) const {
  return const_cast<ConfigSchema*>(this)->Find(name);
}

bool ConfigSchema::Given(const std::string& name) const {
  const Entry* entry = Find(name);
  CHECK_MSG(entry != nullptr, name);
  return entry->from_flag || entry->from_file;
}

StatusOr<ParsedArgs> ConfigSchema::Parse(int argc, const char* const* argv) {
  return Parse(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
}

StatusOr<ParsedArgs> ConfigSchema::Parse(const std::vector<std::string>& words) {
  ParsedArgs args;
  std::vector<FlagValue> flags;
  for (Entry& entry : entries_) {
    entry.from_flag = entry.from_file = false;
    if (entry.default_text.empty()) entry.default_text = entry.show();
  }
  for (size_t at = 0; at < words.size(); ++at) {
    if (words[at] == "--") {
      args.positional.insert(args.positional.end(), words.begin() + at + 1, words.end());
      break;
    }
    if (words[at] == "--help" || words[at] == "-h") return ParsedArgs{{}, true};
    if (words[at].size() < 2 || words[at][0] != '-') {
      args.positional.push_back(words[at]);
    } else {
      RETURN_IF_ERROR(ReadFlag(words, &at, &flags));
    }
  }
  if (!takes_positional_ && !args.positional.empty())
    return InvalidArgument("unexpected argument \"" + args.positional[0] +
                           "\": it belongs to no flag (a value with spaces stands in quotes)");
  // The file first, so that the flags win; but --config itself comes from the flags.
  for (const FlagValue& flag : flags) {
    if (flag.entry->name == "config") RETURN_IF_ERROR(Set(flag.entry, flag.value, "--config"));
  }
  if (Find("config")->from_flag) RETURN_IF_ERROR(ReadFile(config_file_));
  for (const FlagValue& flag : flags) RETURN_IF_ERROR(Set(flag.entry, flag.value, "--" + flag.entry->name));
  for (const Entry& entry : entries_) {
    if (entry.required && !Given(entry.name))
      return InvalidArgument("--" + entry.name + " is required: " + entry.help);
  }
  for (const auto& check : checks_) RETURN_IF_ERROR(check());
  return args;
}

// Reads the flag at words[*at], with its value in the next word if it needs one.
Status ConfigSchema::ReadFlag(const std::vector<std::string>& words, size_t* at,
                              std::vector<FlagValue>* flags) {
  const std::string& word = words[*at];
  if (!word.starts_with("--")) return InvalidArgument("unknown flag '" + word + "': flags begin with --");
  const size_t equals = word.find('=');
  const std::string name = word.substr(2, equals == std::string::npos ? equals : equals - 2);
  Entry* entry = Find(name);
  const bool negated = entry == nullptr && name.starts_with("no-") && Find(name.substr(3)) != nullptr &&
                       Find(name.substr(3))->is_bool;
  if (negated) entry = Find(name.substr(3));
  if (entry == nullptr) return InvalidArgument("unknown flag --" + name + Nearest(name, "--"));
  if (!entry->refused.empty()) return InvalidArgument("--" + name + ": " + entry->refused);
  std::string value;
  if (negated && equals != std::string::npos) {
    return InvalidArgument("--" + name + " takes no value");
  } else if (negated) {
    value = "false";
  } else if (equals != std::string::npos) {
    value = word.substr(equals + 1);
  } else if (entry->is_bool) {
    value = "true";
  } else if (*at + 1 < words.size() && !words[*at + 1].starts_with("--")) {
    value = words[++*at];
  } else {
    return InvalidArgument("--" + name + " needs a value (" + entry->kind + "): " + entry->help);
  }
  if (std::exchange(entry->from_flag, true)) return InvalidArgument("--" + entry->name + " is given twice");
  flags->push_back({entry, std::move(value)});
  return OkStatus();
}

Status ConfigSchema::ReadFile(const std::string& path) {
  ASSIGN_OR_RETURN(const YAML::Node root, LoadYaml(path));
  for (const auto& pair : root) {
    if (!pair.first.IsScalar()) return InvalidArgument(path + ": a key that is no plain word");
    const std::string name = Canonical(pair.first.Scalar());
    const std::string where = path + ": " + pair.first.Scalar();
    Entry* entry = Find(name);
    if (entry == nullptr || name == "config")
      return InvalidArgument(path + ": unknown key " + name + Nearest(name, ""));
    if (!entry->refused.empty()) return InvalidArgument(where + ": " + entry->refused);
    if (std::exchange(entry->from_file, true)) return InvalidArgument(where + " is given twice");
    if (pair.second.IsNull()) return InvalidArgument(where + " needs a value (" + entry->kind + ")");
    const StatusOr<std::string> text = YamlText(pair.second, entry->is_list);
    if (!text.ok()) return Annotate(text.status(), where);
    RETURN_IF_ERROR(Set(entry, *text, where));
  }
  return OkStatus();
}

Status ConfigSchema::Set(Entry* entry, const std::string& value, const std::string& where) {
  const Status status = entry->set(value);
  return status.ok() ? status : Annotate(status, where);
}

// " (did you mean --x?)" when one is near, else where to look. `dashes` as flags are written, or not.
std::string ConfigSchema::Nearest(std::string_view name, const std::string& dashes) const {
  const Entry* best = nullptr;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const Entry& entry : entries_) {
    const size_t distance = EditDistance(name, entry.name);
    if (!entry.refused.empty()) continue;
    if (distance < best_distance) {
      best = &entry;
      best_distance = distance;
    }
  }
  return best != nullptr ? " (did you mean " + dashes + best->name + "?)" : " (--help lists the accepted ones)";
}

std::string ConfigSchema::Help() const {
  std::string text = program_ + ": " + summary_ + "\n\nusage: " + program_ + " [flags]\n\n";
  std::string forwarded_to;
  for (const Entry& entry : entries_) {
    if (!entry.forwarded_to.empty()) {
      if (std::exchange(forwarded_to, entry.forwarded_to) == entry.forwarded_to) continue;
      text += "  --" + entry.name.substr(0, entry.name.find('-')) + "-FLAG\n      FLAG of " + forwarded_to + ", which " +
              forwarded_to + " --help lists\n";
      continue;
    }
    text += "  --" + (entry.is_bool ? "[no-]" + entry.name : entry.name + "=" + entry.kind);
    const std::string value = entry.default_text.empty() ? entry.show() : entry.default_text;
    text += "\n      " + entry.help;
    text += entry.required ? " (required)" : value.empty() ? "" : " (default " + value + ")";
    text += "\n";
  }
  return text + "  --help\n      prints this\n";
}

std::string ConfigSchema::Dump() const {
  std::string text;
  for (const Entry& entry : entries_) text += entry.name + "=" + entry.show() + "\n";
  return text;
}

}  // namespace cachalot
