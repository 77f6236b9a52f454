// What the prefix cache does to the time to the first token: prefix_cache_bench MODEL [TOKENS] [ROUNDS] runs a
// prompt of random ids embedded, in one thread, and prints the medians without a cache, with an empty one and
// with the same prompt cached. The three take turns, so that what else runs touches all alike.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "client/embedded/run.h"

namespace cachalot {
namespace {

/// Milliseconds; exits on an error.
double FirstToken(EmbeddedModel& embedded, const SequenceState& state) {
  const auto start = std::chrono::steady_clock::now();
  if (const Status status = RunEmbedded(embedded, state, {}); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::exit(1);
  }
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fputs("prefix_cache_bench MODEL [TOKENS] [ROUNDS]\n", stderr);
    return 2;
  }
  const int64_t tokens = argc > 2 ? std::atoll(argv[2]) : 1200;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 7;
  const auto plain = EmbeddedModel::Load({.model = argv[1]});
  const auto cached = EmbeddedModel::Load({.model = argv[1], .prefix_cache = {.bytes = int64_t{4} << 30}});
  if (!plain.ok() || !cached.ok()) {
    std::fprintf(stderr, "%s\n", plain.status().ToString().c_str());
    return 1;
  }
  std::mt19937 rng(1);
  SequenceState state;
  state.params.max_tokens = 1;
  std::vector<double> off, cold, warm;
  for (int round = 0; round < rounds; ++round) {
    state.prompt.clear();
    for (int64_t i = 0; i < tokens; ++i)
      state.prompt.push_back(static_cast<int32_t>(rng() % (*plain)->config().vocab_size));
    off.push_back(FirstToken(**plain, state));
    cold.push_back(FirstToken(**cached, state));
    warm.push_back(FirstToken(**cached, state));
  }
  std::printf("%lld tokens, median of %d: no cache %.2f ms, cold %.2f ms, cached %.2f ms\n",
              static_cast<long long>(tokens), rounds, Median(off), Median(cold), Median(warm));
  return 0;
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) { return cachalot::Main(argc, argv); }
