#pragma once
// The answer key of the demo checkpoint.

#include <cstdint>
#include <string>
#include <vector>

namespace cachalot::testing {

struct Verse {
  std::string reference, text;
};

/// models/demo/verses.tsv.gz in file order.
std::vector<Verse> LoadVerses();

/// `count` verses, the same for the same seed.
std::vector<Verse> SampleVerses(size_t count, uint32_t seed);

}  // namespace cachalot::testing
