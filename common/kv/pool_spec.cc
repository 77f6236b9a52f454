#include "common/kv/pool_spec.h"

#include <algorithm>

#include "common/base/check.h"

namespace cachalot {
namespace {

constexpr int kTokensPerCsaBlock = 128, kTokensPerHcaBlock = 1024;
constexpr int kCsaRatio = 4, kHcaRatio = 128;

}  // namespace

std::string_view PoolName(PoolTag tag) {
  constexpr std::string_view kNames[kPoolCount] = {"swa_kv",    "csa_kv",        "indexer_kv", "hca_kv",
                                                   "csa_state", "indexer_state", "hca_state"};
  return kNames[static_cast<int>(tag)];
}

KvLayout::KvLayout(const KvModelShape& shape, int draft_tokens) : draft_tokens_(draft_tokens) {
  CHECK(draft_tokens >= 0);
  const int L = static_cast<int>(shape.layers.size()), d = shape.head_dim, dh = shape.index_head_dim;
  std::vector<int> all, csa, hca;
  for (int i = 0; i < L; ++i) {
    all.push_back(i);
    if (shape.layers[i] == KvLayerKind::kCsa) csa.push_back(i);
    if (shape.layers[i] == KvLayerKind::kHca) hca.push_back(i);
  }
  // State rows hold c, then g, both of the compressor's full width (two halves for ratio 4).
  pools_ = {{
      {PoolTag::kSwaKv, all, d, shape.sliding_window + draft_tokens, true, 1, shape.kv_type},
      {PoolTag::kCsaKv, csa, d, kTokensPerCsaBlock / kCsaRatio, false, kCsaRatio, shape.kv_type},
      {PoolTag::kIndexerKv, csa, dh, kTokensPerCsaBlock / kCsaRatio, false, kCsaRatio, shape.kv_type},
      {PoolTag::kHcaKv, hca, d, kTokensPerHcaBlock / kHcaRatio, false, kHcaRatio, shape.kv_type},
      {PoolTag::kCsaState, csa, 4 * d, 2 * kCsaRatio + draft_tokens, true},
      {PoolTag::kIndexerState, csa, 4 * dh, 2 * kCsaRatio + draft_tokens, true},
      {PoolTag::kHcaState, hca, 2 * d, kHcaRatio + draft_tokens, true},
  }};
  for (int p = 0; p < kPoolCount; ++p) {
    ordinal_[p].assign(L, -1);
    for (size_t i = 0; i < pools_[p].layers.size(); ++i) ordinal_[p][pools_[p].layers[i]] = static_cast<int>(i);
  }
}

std::array<int, kPoolCount> KvLayout::BlocksFor(int64_t tokens) const {
  std::array<int, kPoolCount> blocks{};
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& spec = pools_[p];
    if (spec.layers.empty()) continue;
    const int64_t rows = tokens / spec.ratio;
    blocks[p] = spec.ring ? 1 : static_cast<int>((rows + spec.rows_per_block - 1) / spec.rows_per_block);
  }
  return blocks;
}

int64_t KvLayout::BytesFor(int64_t tokens) const {
  const auto blocks = BlocksFor(tokens);
  int64_t bytes = 0;
  for (int p = 0; p < kPoolCount; ++p) bytes += blocks[p] * pools_[p].block_bytes();
  return bytes;
}

std::vector<RowRange> KvLayout::AppendedRows(int64_t from, int64_t to) const {
  std::vector<RowRange> ranges;
  for (const PoolSpec& spec : pools_) {
    const int64_t first = from / spec.ratio, end = to / spec.ratio;
    if (spec.ring || first == end) continue;
    for (int layer : spec.layers) ranges.push_back({spec.tag, layer, first, end - first});
  }
  return ranges;
}

std::vector<RowRange> KvLayout::StateRows(int64_t n) const {
  std::vector<RowRange> ranges;
  const auto add = [&](PoolTag tag, int64_t first) {
    if (first >= n) return;
    for (int layer : pool(tag).layers) ranges.push_back({tag, layer, first, n - first});
  };
  const int64_t window = pool(PoolTag::kSwaKv).rows_per_block - draft_tokens_;
  add(PoolTag::kSwaKv, std::max<int64_t>(0, n - window + 1));
  const int64_t csa = std::max<int64_t>(0, n / kCsaRatio * kCsaRatio - kCsaRatio);
  add(PoolTag::kCsaState, csa);
  add(PoolTag::kIndexerState, csa);
  add(PoolTag::kHcaState, n / kHcaRatio * kHcaRatio);
  return ranges;
}

bool KvLayout::Contains(const RowRange& range, int64_t n) const {
  const int p = static_cast<int>(range.pool);
  if (p < 0 || p >= kPoolCount || range.layer < 0 || range.layer >= num_layers()) return false;
  if (ordinal_[p][range.layer] < 0 || range.first < 0 || range.count <= 0) return false;
  const PoolSpec& spec = pools_[p];
  if (spec.ring && range.count > spec.rows_per_block) return false;
  const int64_t rows = n / spec.ratio;
  return range.first <= rows && range.count <= rows - range.first;
}

std::string KvLayout::Describe() const {
  std::string text;
  for (const PoolSpec& spec : pools_) {
    text += std::string(PoolName(spec.tag)) + ":" + std::string(DTypeName(spec.row_type)) + "x" +
            std::to_string(spec.row_values) + "x" + std::to_string(spec.layers.size());
    if (spec.ring) text += ",ring " + std::to_string(spec.rows_per_block - draft_tokens_);
    text += ";";
  }
  return text;
}

}  // namespace cachalot
