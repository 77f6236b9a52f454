#pragma once
// A tiny KV for the fuzz targets, and its whole content as bytes.

#include "common/kv/block_pool.h"
#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {

inline constexpr int64_t kKvTokens = 140;  // more than one row of ratio 128

/// A layer of each kind. One pool for a process: targets take a sequence of it and give it back.
inline BlockPools& TinyPools() {
  static BlockPools pools(KvLayout({{KvLayerKind::kWindow, KvLayerKind::kCsa, KvLayerKind::kHca}, 2, 2, 4}),
                          2, 2 * kKvTokens);
  return pools;
}

template <typename Visit>
void EachRow(SequenceKv& kv, Visit visit) {
  for (int p = 0; p < kPoolCount; ++p) {
    const auto tag = static_cast<PoolTag>(p);
    const PoolSpec& spec = kv.layout().pool(tag);
    const int64_t rows = spec.ring ? spec.rows_per_block : kv.capacity() / spec.ratio;
    for (int layer : spec.layers)
      for (int64_t row = 0; row < rows; ++row)
        visit(std::span(kv.RowBytes(tag, layer, row), static_cast<size_t>(spec.row_bytes())));
  }
}

/// A sequence whose rows are filled with a pattern.
inline SequenceKv TinyKv() {
  auto kv = TinyPools().Reserve(kKvTokens);
  CHECK_MSG(kv.ok(), StatusMessage(kv.status()));
  uint8_t next = 1;
  EachRow(*kv, [&](std::span<std::byte> row) {
    for (std::byte& byte : row) byte = static_cast<std::byte>(next += 7);
  });
  return std::move(*kv);
}

inline Bytes ContentOf(SequenceKv& kv) {
  Bytes content;
  EachRow(kv, [&](std::span<std::byte> row) { content.insert(content.end(), row.begin(), row.end()); });
  return content;
}

}  // namespace cachalot::fuzz
