// Runs a fuzz target without libFuzzer:
//   TARGET_fuzz FOLDER [MUTATIONS [SEED]]   every file of the folder, and so many mutations of each
//   TARGET_fuzz --generate FOLDER           writes the target's seeds
//   TARGET_fuzz FILE                        one input, for example a finding
// An input that ends the program is left in replay-failure.bin.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/fuzz/fuzz.h"

// Of a sanitizer's runtime; null without one.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxBytes = 16 << 10;

std::string current;  // the input that runs
bool running = false;  // what a sanitizer finds at the end is no input's fault

void Keep() {
  if (!running) return;
  const int file = open("replay-failure.bin", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file >= 0 && write(file, current.data(), current.size()) >= 0) close(file);
}

void KeepAndDie(int signal) {
  Keep();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

/// A sanitizer ends the program without a signal, and reports crashes from handlers and a stack of its own, which stay.
void KeepWhatEndsTheProgram() {
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(Keep);
  static std::array<char, 64 << 10> stack;  // the program's own may be what is exhausted
  const stack_t other = {.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
  stack_t there = {};
  if (sigaltstack(nullptr, &there) == 0 && (there.ss_flags & SS_DISABLE) != 0) sigaltstack(&other, nullptr);
  for (int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGILL, SIGBUS}) {
    struct sigaction ours = {}, theirs = {};
    ours.sa_handler = KeepAndDie;
    ours.sa_flags = SA_ONSTACK;
    if (sigaction(signal, nullptr, &theirs) == 0 && theirs.sa_handler == SIG_DFL) sigaction(signal, &ours, nullptr);
  }
}

void Run(const std::string& input) {
  current = input;
  running = true;
  // A copy of exactly this size, so that a sanitizer sees a read behind its end.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  running = false;
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::string Mutate(std::string bytes, const std::string& other) {
    for (size_t i = 1 + Below(4); i > 0; --i) Step(&bytes, other);
    bytes.resize(std::min(bytes.size(), kMaxBytes));
    return bytes;
  }

 private:
  size_t Below(size_t limit) { return random_() % std::max<size_t>(limit, 1); }  // the same everywhere

  void Step(std::string* bytes, const std::string& other) {
    const size_t at = Below(bytes->size() + 1);
    const size_t count = std::min(1 + Below(16), bytes->size() - at);
    switch (Below(6)) {
      case 0:
        if (at < bytes->size()) (*bytes)[at] ^= static_cast<char>(1 << Below(8));
        break;
      case 1:
        if (at < bytes->size()) (*bytes)[at] = static_cast<char>(random_());
        break;
      case 2:
        bytes->erase(at, count);
        break;
      case 3:
        bytes->insert(Below(bytes->size() + 1), bytes->substr(at, count));
        break;
      case 4:
        bytes->replace(at, std::string::npos, other.substr(std::min(at, other.size())));
        break;
      default: {
        constexpr uint64_t kValues[] = {
            0, 1, 0x7f, 0xff, 0x7fffffff, 0x80000000, 0xffffffff, ~uint64_t{0} >> 1, ~uint64_t{0}};
        const uint64_t value = kValues[Below(std::size(kValues))];
        const size_t width = size_t{1} << Below(4);
        if (at + width <= bytes->size()) std::memcpy(bytes->data() + at, &value, width);
      }
    }
  }

  std::mt19937_64 random_;
};

int Generate(const fs::path& folder) {
  fs::create_directories(folder);
  for (const auto& seed : cachalot::fuzz::Seeds())
    std::ofstream(folder / seed.name, std::ios::binary) << seed.bytes;
  return 0;
}

}  // namespace

// UndefinedBehaviorSanitizer's word before it ends the program: GCC's has a runtime, and a death, of its own.
extern "C" void __ubsan_on_report() { Keep(); }

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "--generate") return Generate(argv[2]);
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FOLDER [MUTATIONS [SEED]] | FILE | --generate FOLDER\n", argv[0]);
    return 2;
  }
  KeepWhatEndsTheProgram();
  if (fs::is_regular_file(argv[1])) {
    Run(ReadFile(argv[1]));
    return 0;
  }
  const size_t mutations = argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 250;
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 0) : 20240611;
  std::vector<fs::path> paths;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(argv[1], error)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) {
    std::fprintf(stderr, "%s: no inputs there\n", argv[1]);
    return 1;
  }
  std::vector<std::string> inputs;
  for (const fs::path& path : paths) inputs.push_back(ReadFile(path));
  for (const std::string& input : inputs) Run(input);
  std::printf("%zu inputs, %zu mutations of each, seed %llu\n", inputs.size(), mutations,
              static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  Mutator mutator(seed);
  for (size_t i = 0; i < mutations * inputs.size(); ++i)
    Run(mutator.Mutate(inputs[i % inputs.size()], inputs[i * 7 / 3 % inputs.size()]));
}
