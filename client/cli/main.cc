// The `cachalot` command.

#include <csignal>
#include <cstdio>
#include <cstring>

#include "client/cli/commands.h"
#include "common/base/log.h"
#include "common/base/standard_output.h"

namespace cachalot::cli {

int Report(const std::string& command, const Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "cachalot %s: %s\n", command.c_str(), StatusMessage(status).c_str());
  return status.code() == StatusCode::kInvalidArgument ? 2 : 1;
}

namespace {

struct Command {
  const char* name;
  const char* help;
  int (*run)(const std::vector<std::string>&);
};

constexpr Command kCommands[] = {
    {"generate", "one completion of token ids, text or a chat turn", GenerateCommand},
    {"chat", "talk to a model, turn by turn", ChatCommand},
    {"logits", "logits of every position of a sequence", LogitsCommand},
    {"serve", "serve a checkpoint from this process alone (gRPC)", ServeCommand},
    {"inspect", "what a checkpoint holds and needs, without loading it", InspectCommand},
    {"demo", "three verses from the demo checkpoint", DemoCommand},
    {"up", "start router, prefill, decode and expert processes on this machine", UpCommand},
};

int Usage(FILE* out, int code) {
  std::fputs("usage: cachalot COMMAND [flags]; cachalot COMMAND --help\n\n", out);
  for (const Command& command : kCommands) std::fprintf(out, "  %-10s %s\n", command.name, command.help);
  return code;
}

int Run(int argc, char** argv) {
  if (argc < 2) return Usage(stderr, 2);
  const std::string name = argv[1];
  if (name == "--help" || name == "help") return Usage(stdout, 0);
  if (name == "--version") return std::puts("cachalot " CACHALOT_VERSION), 0;
  for (const Command& command : kCommands)
    if (name == command.name) return command.run(std::vector<std::string>(argv + 2, argv + argc));
  std::fprintf(stderr, "cachalot: unknown command \"%s\"\n", name.c_str());
  return Usage(stderr, 2);
}

int Main(int argc, char** argv) {
  (void)InitLog("cachalot", "warning");
  std::signal(SIGXFSZ, SIG_IGN);  // a file over the limit is an error of write then, and cleaned up
  const int code = Run(argc, argv);
  // Commands that print piece by piece, and --help, leave to this line whether it arrived.
  return code == 0 ? Report(argc > 1 ? argv[1] : "", FlushStdout()) : code;
}

}  // namespace
}  // namespace cachalot::cli

int main(int argc, char** argv) { return cachalot::cli::Main(argc, argv); }
