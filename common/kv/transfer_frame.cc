#include "common/kv/transfer_frame.h"

#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <tuple>

#include "common/base/bytes.h"
#include "common/base/check.h"

namespace cachalot {
namespace {

template <typename T>
void Append(std::vector<std::byte>& out, const T& value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof(T));
}

uint64_t HeaderChecksum(const KvFrameHeader& header) {
  return KvChecksum(std::as_bytes(std::span(&header, 1)).first(offsetof(KvFrameHeader, header_checksum)));
}

// Fills in what the header says of its payload and of itself.
void Complete(KvFrameHeader& header, std::span<const std::byte> payload) {
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  header.checksum = KvChecksum(payload);
  header.header_checksum = HeaderChecksum(header);
}

std::vector<std::byte> Seal(KvFrameHeader header, std::span<const std::byte> payload) {
  Complete(header, payload);
  std::vector<std::byte> frame;
  frame.reserve(sizeof(header) + payload.size());
  Append(frame, header);
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

KvFrameHeader HeaderOf(KvFrameKind kind, uint64_t lease, uint64_t epoch, uint32_t attempt) {
  KvFrameHeader header;
  header.kind = kind;
  header.lease = lease;
  header.epoch = epoch;
  header.attempt = attempt;
  return header;
}

std::string NameOf(PoolTag pool, int layer) {
  return std::string(PoolName(pool)) + " of layer " + std::to_string(layer);
}

}  // namespace

uint64_t KvChecksum(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::vector<std::byte> EncodeRows(const SequenceKv& kv, const RowRange& range, uint64_t lease, uint64_t epoch,
                                  uint32_t attempt) {
  KvFrameHeader header = HeaderOf(KvFrameKind::kRows, lease, epoch, attempt);
  header.pool = range.pool;
  header.layer = static_cast<uint16_t>(range.layer);
  header.first_row = range.first;
  header.rows = static_cast<uint32_t>(range.count);
  const size_t row_bytes = kv.layout().pool(range.pool).row_bytes();
  std::vector<std::byte> frame(sizeof(header) + range.count * row_bytes);
  std::byte* at = frame.data() + sizeof(header);
  for (int64_t r = 0; r < range.count; ++r, at += row_bytes)
    std::memcpy(at, kv.RowBytes(range.pool, range.layer, range.first + r), row_bytes);
  Complete(header, std::span(frame).subspan(sizeof(header)));
  std::memcpy(frame.data(), &header, sizeof(header));
  return frame;
}

StatusOr<KvFrameView> ParseKvFrame(std::span<const std::byte> frame) {
  ByteReader reader(frame);
  KvFrameView view{reader.Read<KvFrameHeader>(), {}};
  const KvFrameHeader& h = view.header;
  if (!reader.ok()) return DataLoss("KV frame of " + std::to_string(frame.size()) + " bytes: shorter than its header");
  if (h.magic != KvFrameHeader::kMagic) return DataLoss("KV frame: wrong magic");
  if (h.version != kKvStateFormat)
    return DataLoss("KV frame: version " + std::to_string(h.version) + ", wanted " + std::to_string(kKvStateFormat));
  if (h.header_checksum != HeaderChecksum(h)) return DataLoss("KV frame: wrong checksum of the header");
  if (h.kind < KvFrameKind::kRows || h.kind > KvFrameKind::kVerdict) return DataLoss("KV frame: unknown kind");
  if (h.payload_bytes != reader.remaining())
    return DataLoss("KV frame: payload of " + std::to_string(reader.remaining()) + " bytes, header says " +
                    std::to_string(h.payload_bytes));
  view.payload = reader.Take(h.payload_bytes);
  if (KvChecksum(view.payload) != h.checksum) return DataLoss("KV frame: wrong checksum");
  return view;
}

void KvTally::Add(const KvFrameHeader& h) {
  const auto before = [](const Entry& a, const Entry& b) {
    return std::tie(a.pool, a.layer) < std::tie(b.pool, b.layer);
  };
  const Entry entry{h.pool, h.layer, h.rows};
  auto at = std::lower_bound(entries.begin(), entries.end(), entry, before);
  if (at != entries.end() && at->pool == h.pool && at->layer == h.layer) {
    at->rows += h.rows;
  } else {
    entries.insert(at, entry);
  }
  const uint64_t key[4] = {static_cast<uint64_t>(h.pool), h.layer, static_cast<uint64_t>(h.first_row), h.checksum};
  checksum += XXH3_64bits(key, sizeof(key));
}

std::vector<std::byte> EncodeCommit(const KvCommit& commit, uint64_t lease, uint64_t epoch, uint32_t attempt) {
  std::vector<std::byte> payload;
  Append(payload, commit.tokens);
  Append(payload, commit.first_index);
  Append(payload, commit.first_token);
  Append(payload, static_cast<uint32_t>(commit.tally.entries.size()));
  Append(payload, commit.tally.checksum);
  for (const KvTally::Entry& entry : commit.tally.entries) {
    Append(payload, static_cast<uint16_t>(entry.pool));
    Append(payload, static_cast<uint16_t>(entry.layer));
    Append(payload, entry.rows);
  }
  return Seal(HeaderOf(KvFrameKind::kCommit, lease, epoch, attempt), payload);
}

StatusOr<KvCommit> DecodeCommit(std::span<const std::byte> payload) {
  ByteReader reader(payload);
  KvCommit commit;
  commit.tokens = reader.Read<int64_t>();
  commit.first_index = reader.Read<int64_t>();
  commit.first_token = reader.Read<int32_t>();
  const auto count = reader.Read<uint32_t>();
  commit.tally.checksum = reader.Read<uint64_t>();
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    KvTally::Entry entry;
    const auto pool = reader.Read<uint16_t>();
    if (pool >= kPoolCount) return DataLoss("KV commit: pool " + std::to_string(pool) + " is unknown");
    entry.pool = static_cast<PoolTag>(pool);
    entry.layer = reader.Read<uint16_t>();
    entry.rows = reader.Read<int64_t>();
    commit.tally.entries.push_back(entry);
  }
  if (!reader.ok() || reader.remaining() != 0) return DataLoss("KV commit: malformed");
  return commit;
}

std::vector<std::byte> EncodeVerdict(const Status& verdict, uint64_t lease, uint64_t epoch, uint32_t attempt) {
  std::vector<std::byte> payload;
  Append(payload, static_cast<int32_t>(verdict.code()));
  for (char c : StatusMessage(verdict)) payload.push_back(static_cast<std::byte>(c));
  return Seal(HeaderOf(KvFrameKind::kVerdict, lease, epoch, attempt), payload);
}

Status DecodeVerdict(std::span<const std::byte> payload) {
  ByteReader reader(payload);
  const auto code = reader.Read<int32_t>();
  const auto text = reader.Take(reader.remaining());
  if (!reader.ok() || code < 0 || code > 16) return DataLoss("KV verdict: malformed");
  return MakeStatus(static_cast<StatusCode>(code), {reinterpret_cast<const char*>(text.data()), text.size()});
}

std::vector<RowRange> HandOffRows(const KvLayout& layout, int64_t n) {
  std::vector<RowRange> ranges = layout.AppendedRows(0, n);
  const auto state = layout.StateRows(n);
  ranges.insert(ranges.end(), state.begin(), state.end());
  return ranges;
}

void CopyHandOff(const SequenceKv& from, int64_t n, SequenceKv* to) {
  CHECK(from.tokens() == n && to->capacity() >= n);
  for (const RowRange& range : HandOffRows(from.layout(), n)) {
    const auto bytes = static_cast<size_t>(from.layout().pool(range.pool).row_bytes());
    for (int64_t row = range.first; row < range.first + range.count; ++row)
      std::memcpy(to->RowBytes(range.pool, range.layer, row), from.RowBytes(range.pool, range.layer, row),
                  bytes);
  }
  to->SetTokens(n);
}

void KvReceiver::Restart() {
  tally_ = {};
  received_.clear();
  kv_->Reset();
}

Status KvReceiver::Place(const KvFrameView& frame) {
  const KvFrameHeader& h = frame.header;
  const RowRange range{h.pool, h.layer, h.first_row, h.rows};
  const KvLayout& layout = kv_->layout();
  if (!layout.Contains(range, max_tokens_))
    return DataLoss("KV rows [" + std::to_string(h.first_row) + ", +" + std::to_string(h.rows) + ") of pool " +
                    std::to_string(static_cast<int>(h.pool)) + ", layer " + std::to_string(h.layer) +
                    " lie outside the lease of " + std::to_string(max_tokens_) + " tokens");
  const size_t row_bytes = layout.pool(h.pool).row_bytes();
  if (frame.payload.size() != h.rows * row_bytes)
    return DataLoss("KV rows of " + NameOf(h.pool, h.layer) + ": " + std::to_string(frame.payload.size()) +
                    " bytes, wanted " + std::to_string(h.rows * row_bytes));
  auto known = std::find_if(received_.begin(), received_.end(), [&](const RowRange& r) {
    return r.pool == range.pool && r.layer == range.layer;
  });
  if (known == received_.end()) {
    received_.push_back(range);
  } else if (range.first != known->first + known->count) {
    return DataLoss("KV rows of " + NameOf(h.pool, h.layer) + ": got row " + std::to_string(range.first) +
                    ", wanted row " + std::to_string(known->first + known->count));
  } else {
    known->count += range.count;
  }
  for (int64_t r = 0; r < range.count; ++r)
    std::memcpy(kv_->RowBytes(range.pool, range.layer, range.first + r), frame.payload.data() + r * row_bytes, row_bytes);
  tally_.Add(h);
  return OkStatus();
}

Status KvReceiver::Commit(const KvCommit& commit) {
  if (commit.tokens <= 0 || commit.tokens > max_tokens_)
    return DataLoss("KV commit of " + std::to_string(commit.tokens) + " tokens under a lease of " +
                    std::to_string(max_tokens_));
  const auto wanted = HandOffRows(kv_->layout(), commit.tokens);
  for (const RowRange& range : wanted)
    if (std::find(received_.begin(), received_.end(), range) == received_.end())
      return DataLoss("KV commit: rows [" + std::to_string(range.first) + ", " +
                      std::to_string(range.first + range.count) + ") of " + NameOf(range.pool, range.layer) +
                      " are not all there");
  if (wanted.size() != received_.size()) return DataLoss("KV commit: rows of more pools than wanted");
  if (!(tally_ == commit.tally)) return DataLoss("KV commit: counts or checksum differ from what was received");
  kv_->SetTokens(commit.tokens);
  return OkStatus();
}

}  // namespace cachalot
