#pragma once
// The lightning indexer of CSA layers (model.md 3.7): which compressed rows a query attends to.

#include <vector>

#include "common/model/step.h"

namespace cachalot {

/// Queries and head weights of the step's tokens: s.index_q [T, Hi*dh] roped, s.index_w [T, Hi] scaled.
void IndexerQueries(Step& step, const IndexerWeights& w, const float* u, const float* qr);

struct IndexerScratch {
  std::vector<const void*> keys;
  std::vector<float> scores;
};

/// Entries [0, visible) that row t attends to, ascending: the index_topk best, ties to the lower index; all of them
/// while there are no more than that.
void SelectEntries(const Step& step, int layer, int64_t t, int64_t visible, IndexerScratch& scratch,
                   std::vector<int32_t>& selected);

}  // namespace cachalot
