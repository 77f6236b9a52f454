#pragma once
// Fills one typed struct per program from a YAML file and flags. Absent means the default that the struct
// has; a wrong or unknown entry is an error that names it and what is accepted. Flags win over the file.
//
//   struct Config { std::string listen = "127.0.0.1:0"; int max_batch = 32; bool draft = false; Duration
//   grace = 3s; }; Config config; ConfigSchema schema("cachalot-decode", "Serves decode sessions.");
//   schema.Add("listen", &config.listen, "host:port to listen on");
//   schema.Add("max-batch", &config.max_batch, "sequences per step", Range(1, 4096));
//   schema.AddMilliseconds("grace-ms", &config.grace, "how long a lost session keeps its leases");
//   ASSIGN_OR_RETURN(ParsedArgs parsed, schema.Parse(argc, argv));
//   if (parsed.help) { puts(schema.Help().c_str()); return 0; }

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"

namespace cachalot {

/// Says what is wrong with a parsed value, or OK. The message is put behind the flag's name.
template <typename T>
using Validator = std::function<Status(const T&)>;

/// Accepts [least, most].
template <typename T>
Validator<T> Range(T least, T most);
/// Accepts one of these words.
Validator<std::string> OneOf(std::vector<std::string> words);
/// Refuses "".
Validator<std::string> NotEmpty();
/// Refuses what is shorter.
Validator<Duration> AtLeastMilliseconds(int64_t least);
/// Accepts "" beside what `valid` accepts.
Validator<std::string> OrEmpty(Validator<std::string> valid);
/// Accepts what a server can be told to listen on, form only: host:port or unix:path.
Validator<std::string> ListenForm();
/// host:port alone.
Validator<std::string> HostPortForm();

struct ParsedArgs {
  std::vector<std::string> positional;  ///< in order; everything after "--" too
  bool help = false;                    ///< --help was given: nothing else was looked at
};

/// Flags: --name=value or --name value; booleans --name and --no-name (or =true, =false). YAML: `name: value`
/// at the top level, '-' and '_' alike, lists as YAML lists or comma-separated. Every schema has --config
/// FILE and --help.
class ConfigSchema {
 public:
  ConfigSchema(std::string program, std::string summary);
  ConfigSchema(const ConfigSchema&) = delete;  // its entries point into it
  ConfigSchema& operator=(const ConfigSchema&) = delete;

  /// `name` in lower case with '-'; `field` holds the default and must outlive Parse. Two of one name: CHECK.
  void Add(const std::string& name, std::string* field, const std::string& help,
           Validator<std::string> valid = {});
  void Add(const std::string& name, int* field, const std::string& help, Validator<int> valid = {});
  void Add(const std::string& name, int64_t* field, const std::string& help, Validator<int64_t> valid = {});
  void Add(const std::string& name, double* field, const std::string& help, Validator<double> valid = {});
  void Add(const std::string& name, bool* field, const std::string& help);
  void Add(const std::string& name, std::vector<std::string>* field, const std::string& help,
           Validator<std::vector<std::string>> valid = {});
  /// Whole or fractional milliseconds, >= 0. The name should end in -ms.
  void AddMilliseconds(const std::string& name, Duration* field, const std::string& help,
                       Validator<Duration> valid = {});

  /// Takes the flags of another program as --PREFIX-NAME: `inner` checks and keeps their values, `given` gets those
  /// that were given, by NAME. `refused`: names that are not taken, and why. `inner` gets no more flags afterwards
  /// and outlives Parse.
  void Forward(const std::string& prefix, ConfigSchema& inner, std::map<std::string, std::string>* given,
               const std::map<std::string, std::string>& refused);

  /// For relations between fields; run last, in order, when everything else was right.
  void Check(std::function<Status()> check);
  /// Parse fails unless the file or a flag gave it.
  void Require(const std::string& name);
  /// Words that are neither flags nor their values are the program's to judge; without this Parse refuses them.
  void TakePositional() { takes_positional_ = true; }

  /// INVALID_ARGUMENT names the flag or key, what was given and what is accepted. The same flag twice is an
  /// error.
  StatusOr<ParsedArgs> Parse(int argc, const char* const* argv);
  /// The same from words (without the program's name).
  StatusOr<ParsedArgs> Parse(const std::vector<std::string>& words);

  /// Whether the file or a flag gave it in the last Parse.
  bool Given(const std::string& name) const;
  /// Usage with every flag, its kind, default and help.
  std::string Help() const;
  /// name=value of every field, one a line, for the log at start.
  std::string Dump() const;

 private:
  struct Entry {
    std::string name, kind, help, default_text;
    bool is_bool = false, is_list = false, required = false;
    bool from_flag = false, from_file = false;
    std::string refused;        // not taken: why
    std::string forwarded_to;   // the program whose help says more
    std::function<Status(const std::string&)> set;  // of one text
    std::function<std::string()> show;
  };
  struct FlagValue {
    Entry* entry;
    std::string value;
  };
  Entry& AddEntry(const std::string& name, const std::string& kind, const std::string& help);
  Entry* Find(std::string_view name);
  const Entry* Find(std::string_view name) const;
  Status ReadFlag(const std::vector<std::string>& words, size_t* at, std::vector<FlagValue>* flags);
  Status ReadFile(const std::string& path);
  Status Set(Entry* entry, const std::string& value, const std::string& where);
  std::string Nearest(std::string_view name, const std::string& dashes) const;

  std::string program_, summary_, config_file_;
  std::vector<Entry> entries_;
  std::vector<std::function<Status()>> checks_;
  bool takes_positional_ = false;
};

}  // namespace cachalot
