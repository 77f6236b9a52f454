// Encoding speed: tokenizer_bench TOKENIZER.json TEXT [ROUNDS] encodes TEXT in documents of 4 KB, in one
// thread, and prints the best round's MB per second of processor time; then how long runs of one letter take.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

constexpr size_t kDocumentBytes = 4096;

double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::vector<std::string> Documents(const std::string& text) {
  std::vector<std::string> documents;
  for (size_t at = 0; at < text.size();) {
    std::string document = text.substr(at, kDocumentBytes);
    // A cut inside a character goes before it.
    if (const size_t invalid = FindInvalidUtf8(document); invalid + 4 > document.size() && invalid > 0) {
      document.resize(std::min(invalid, document.size()));
    }
    at += document.size();
    documents.push_back(std::move(document));
  }
  return documents;
}

int Main(const char* tokenizer_path, const char* text_path, int rounds) {
  const double start = ThreadSeconds();
  const auto tokenizer = Tokenizer::Load(tokenizer_path);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", StatusMessage(tokenizer.status()).c_str());
    return 1;
  }
  std::printf("load_s %.3f\n", ThreadSeconds() - start);
  std::ifstream file(text_path, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  double best = 1e30;
  size_t tokens = 0;
  for (int round = 0; round < rounds; ++round) {
    const std::vector<std::string> documents = Documents(text);
    const double begin = ThreadSeconds();
    tokens = 0;
    for (const std::string& document : documents) {
      const auto ids = (*tokenizer)->Encode(document, false);
      if (!ids.ok()) {
        std::fprintf(stderr, "%s: %s\n", text_path, StatusMessage(ids.status()).c_str());
        return 1;
      }
      tokens += ids->size();
    }
    best = std::min(best, ThreadSeconds() - begin);
  }
  std::printf("mb_per_s %.3f\ntokens %zu\n", static_cast<double>(text.size()) / best / 1e6, tokens);
  double per_byte = 0;  // of the shortest run
  for (const size_t length : {250'000, 500'000, 1'000'000, 2'000'000}) {
    const std::string run(length, 'a');
    const double begin = ThreadSeconds();
    const bool ok = (*tokenizer)->Encode(run, false).ok();
    const double seconds = ThreadSeconds() - begin;
    if (per_byte == 0) per_byte = seconds / static_cast<double>(length);
    std::printf("one_letter_%zu_s %.3f, a byte %.2f x the first's%s\n", length, seconds,
                seconds / static_cast<double>(length) / per_byte, ok ? "" : " refused");
  }
  return 0;
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenizer_bench TOKENIZER.json TEXT [ROUNDS]\n");
    return 2;
  }
  return cachalot::Main(argv[1], argv[2], argc > 3 ? std::max(1, std::atoi(argv[3])) : 5);
}
