#pragma once
// The compressor of CSA and HCA layers and of the lightning indexer (model.md 3.6), incremental (model.md 4.1).

#include "common/model/step.h"

namespace cachalot {

/// Where one compressor keeps its rows.
struct CompressorPools {
  PoolTag state;    // ring of (c, g + ape) by position
  PoolTag entries;  // finished rows, normed and roped
  int width;        // dh: channels of an entry
};

/// Feeds the step's tokens in position order, u [T, D] normed, and emits every entry whose window closes. `c` and `g`
/// are scratch for [T, coff*dh].
void Compress(Step& step, int layer, const CompressorWeights& w, const CompressorPools& pools, const float* u,
              std::vector<float>& c, std::vector<float>& g);

}  // namespace cachalot
