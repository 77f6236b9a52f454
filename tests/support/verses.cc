#include "tests/support/verses.h"

#include <zlib.h>

#include <algorithm>
#include <random>

#include "common/base/check.h"

namespace cachalot::testing {

std::vector<Verse> LoadVerses() {
  gzFile file = gzopen(CACHALOT_SOURCE_DIR "/models/demo/verses.tsv.gz", "rb");
  CHECK_MSG(file != nullptr, "models/demo/verses.tsv.gz cannot be read");
  std::string text;
  char buffer[65536];
  for (int count; (count = gzread(file, buffer, sizeof(buffer))) > 0;) text.append(buffer, count);
  gzclose(file);
  std::vector<Verse> verses;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size()), tab = text.find('\t', at);
    CHECK(tab < end);
    verses.push_back({text.substr(at, tab - at), text.substr(tab + 1, end - tab - 1)});
    at = end + 1;
  }
  return verses;
}

std::vector<Verse> SampleVerses(size_t count, uint32_t seed) {
  std::vector<Verse> verses = LoadVerses();
  std::mt19937 rng(seed);
  for (size_t i = 0; i < count; ++i) std::swap(verses[i], verses[i + rng() % (verses.size() - i)]);
  verses.resize(count);
  return verses;
}

}  // namespace cachalot::testing
