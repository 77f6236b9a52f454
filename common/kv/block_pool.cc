#include "common/kv/block_pool.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/base/check.h"

namespace cachalot {

SequenceKv& SequenceKv::operator=(SequenceKv&& other) noexcept {
  if (this == &other) return *this;
  Release();
  pools_ = std::exchange(other.pools_, nullptr);
  blocks_ = std::move(other.blocks_);
  tokens_ = std::exchange(other.tokens_, 0);
  capacity_ = std::exchange(other.capacity_, 0);
  written_ = std::exchange(other.written_, 0);
  placed_ = std::exchange(other.placed_, 0);
  return *this;
}

const KvLayout& SequenceKv::layout() const { return pools_->layout(); }

float* SequenceKv::Row(PoolTag tag, int layer, int64_t row) {
  CHECK(pools_->layout_.pool(tag).row_type == DType::kF32);
  return reinterpret_cast<float*>(RowBytes(tag, layer, row));
}

std::byte* SequenceKv::RowBytes(PoolTag tag, int layer, int64_t row) {
  const int p = static_cast<int>(tag);
  const PoolSpec& spec = pools_->layout_.pool(tag);
  const int ordinal = pools_->layout_.ordinal(tag, layer);
  CHECK(ordinal >= 0 && row >= 0);
  const int64_t page = spec.ring ? 0 : row / spec.rows_per_block;
  CHECK(page < static_cast<int64_t>(blocks_[p].size()));
  const int64_t slot = static_cast<int64_t>(ordinal) * spec.rows_per_block + row % spec.rows_per_block;
  return pools_->pools_[p].memory.get() + blocks_[p][page] * spec.block_bytes() + slot * spec.row_bytes();
}

bool SequenceKv::Grow(int64_t tokens) {
  if (tokens <= capacity_) return true;
  if (!pools_->Extend(blocks_, tokens)) return false;
  capacity_ = tokens;
  return true;
}

void SequenceKv::BeginWrite(int64_t count) {
  CHECK(count >= 0 && tokens_ + count <= capacity_);
  written_ = std::max(written_, tokens_ + count);
}

void SequenceKv::Advance(int64_t count) {
  BeginWrite(count);
  tokens_ += count;
}

void SequenceKv::SetTokens(int64_t n) {
  CHECK(n >= 0 && n <= capacity_);
  tokens_ = written_ = placed_ = n;
}

Status SequenceKv::Rollback(int64_t n) {
  const int64_t drafts = layout().draft_tokens();
  const auto refuse = [&](const std::string& why) {
    return OutOfRange("rollback from " + std::to_string(tokens_) + " to " + std::to_string(n) +
                      " tokens: " + why);
  };
  if (n < 0 || n > tokens_) return refuse("the target lies outside the sequence");
  if (tokens_ - n > drafts)
    return refuse(std::to_string(tokens_ - n) + " to drop, the rings have room for " +
                  std::to_string(drafts) + " draft tokens");
  // Several rollbacks in a row, each small enough, must not reach further back than one: what counts is how
  // far the rings have ever been written.
  if (written_ - n > drafts + 1)
    return refuse("the rings have been written up to " + std::to_string(written_) + " with room for " +
                  std::to_string(drafts) + " draft tokens");
  if (n < placed_) return refuse("rows before the hand-off at " + std::to_string(placed_) + " are not here");
  tokens_ = n;
  return OkStatus();
}

bool SequenceKv::whole() const { return written_ - tokens_ <= layout().draft_tokens() + 1; }

void SequenceKv::Release() {
  if (pools_) pools_->Free(blocks_);
  pools_ = nullptr;
  tokens_ = capacity_ = written_ = placed_ = 0;
}

namespace {

int64_t BlocksOf(const PoolSpec& spec, int max_sequences, int64_t max_tokens) {
  if (spec.layers.empty()) return 0;
  // A sequence may leave its last block of an append-only pool part empty: one more each.
  return spec.ring ? max_sequences : max_tokens / spec.ratio / spec.rows_per_block + max_sequences;
}

using Memory = std::unique_ptr<std::byte[], void (*)(std::byte*)>;

Memory MakeMemory(int64_t bytes) {
  return {static_cast<std::byte*>(std::calloc(static_cast<size_t>(std::max<int64_t>(bytes, 4)), 1)),
          [](std::byte* memory) { std::free(memory); }};
}

}  // namespace

Status CheckKvMemory(const KvLayout& layout, int max_sequences, int64_t max_tokens) {
  constexpr int64_t kMostBytes = int64_t{1} << 46;  // no address space has more; sanitizers abort when asked for it
  int64_t bytes = 0;
  bool fits = true;
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& spec = layout.pool(static_cast<PoolTag>(p));
    const int64_t blocks = BlocksOf(spec, max_sequences, max_tokens);
    bytes += blocks * spec.block_bytes();
    fits &= blocks <= std::numeric_limits<int32_t>::max() && bytes <= kMostBytes;
  }
  std::vector<Memory> held;
  for (int p = 0; p < kPoolCount && fits; ++p) {
    const PoolSpec& spec = layout.pool(static_cast<PoolTag>(p));
    held.push_back(MakeMemory(BlocksOf(spec, max_sequences, max_tokens) * spec.block_bytes()));
    fits = held.back() != nullptr;
  }
  if (fits) return OkStatus();
  return ResourceExhausted("no memory for " + std::to_string(bytes) + " bytes of KV, which " +
                           std::to_string(max_tokens) + " tokens and " + std::to_string(max_sequences) +
                           " sequences need: lower --kv-tokens or --max-sequences");
}

BlockPools::BlockPools(KvLayout layout, int max_sequences, int64_t max_tokens) : layout_(std::move(layout)) {
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& spec = layout_.pool(static_cast<PoolTag>(p));
    if (spec.layers.empty()) continue;
    const int64_t blocks = BlocksOf(spec, max_sequences, max_tokens);
    Pool& pool = pools_[p];
    pool.total = static_cast<int32_t>(blocks);
    pool.memory = MakeMemory(blocks * spec.block_bytes());
    CHECK_MSG(pool.memory != nullptr, "no memory for " + std::to_string(blocks * spec.block_bytes()) + " bytes of KV");
    for (int64_t b = blocks - 1; b >= 0; --b) pool.free.push_back(static_cast<int32_t>(b));
    total_ += blocks;
  }
}

BlockPools::~BlockPools() { CHECK_MSG(used_blocks() == 0, "a sequence outlives its KV pools"); }

StatusOr<SequenceKv> BlockPools::Reserve(int64_t tokens, int64_t at_most) {
  const auto wanted = layout_.BlocksFor(tokens), most = layout_.BlocksFor(std::max(tokens, at_most));
  SequenceKv kv;
  std::lock_guard lock(mutex_);
  for (int p = 0; p < kPoolCount; ++p)
    if (wanted[p] > static_cast<int>(pools_[p].free.size()))
      return ResourceExhausted("KV pool " + std::string(PoolName(static_cast<PoolTag>(p))) + ": " +
                               std::to_string(wanted[p]) + " blocks wanted for " + std::to_string(tokens) +
                               " tokens, " + std::to_string(pools_[p].free.size()) + " of " +
                               std::to_string(pools_[p].total) + " free; retry later or raise --kv-tokens or "
                               "--max-sequences");
  for (int p = 0; p < kPoolCount; ++p) {
    auto& free = pools_[p].free;
    kv.blocks_[p].reserve(most[p]);
    kv.blocks_[p].assign(free.end() - wanted[p], free.end());
    free.resize(free.size() - wanted[p]);
    used_ += wanted[p];
  }
  kv.pools_ = this;
  kv.capacity_ = tokens;
  return kv;
}

bool BlockPools::Extend(std::array<std::vector<int32_t>, kPoolCount>& blocks, int64_t tokens) {
  const auto wanted = layout_.BlocksFor(tokens);
  std::lock_guard lock(mutex_);
  for (int p = 0; p < kPoolCount; ++p)
    if (wanted[p] > static_cast<int64_t>(blocks[p].size() + pools_[p].free.size())) return false;
  for (int p = 0; p < kPoolCount; ++p) {
    auto& free = pools_[p].free;
    const auto more = wanted[p] - static_cast<ptrdiff_t>(blocks[p].size());
    if (more <= 0) continue;
    blocks[p].insert(blocks[p].end(), free.end() - more, free.end());
    free.resize(free.size() - more);
    used_ += more;
  }
  return true;
}

bool BlockPools::CanHold(int64_t tokens) const {
  const auto wanted = layout_.BlocksFor(tokens);
  for (int p = 0; p < kPoolCount; ++p)
    if (wanted[p] > pools_[p].total) return false;
  return true;
}

int64_t BlockPools::total_tokens() const {
  int64_t tokens = INT64_MAX;
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& spec = layout_.pool(static_cast<PoolTag>(p));
    if (spec.layers.empty() || spec.ring) continue;
    // Its last row comes with the last of `ratio` tokens.
    tokens = std::min(tokens, pools_[p].total * int64_t{spec.rows_per_block} * spec.ratio + spec.ratio - 1);
  }
  return tokens;
}

void BlockPools::Free(std::array<std::vector<int32_t>, kPoolCount>& blocks) {
  std::lock_guard lock(mutex_);
  for (int p = 0; p < kPoolCount; ++p) {
    pools_[p].free.insert(pools_[p].free.end(), blocks[p].begin(), blocks[p].end());
    used_ -= static_cast<int64_t>(blocks[p].size());
    blocks[p].clear();
  }
}

int64_t BlockPools::free_tokens() const {
  std::lock_guard lock(mutex_);
  int64_t tokens = INT64_MAX;
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& spec = layout_.pool(static_cast<PoolTag>(p));
    if (spec.layers.empty()) continue;
    const int64_t blocks = static_cast<int64_t>(pools_[p].free.size());
    if (spec.ring && blocks == 0) return 0;
    if (!spec.ring) tokens = std::min(tokens, blocks * spec.rows_per_block * spec.ratio);
  }
  return tokens;
}

}  // namespace cachalot
