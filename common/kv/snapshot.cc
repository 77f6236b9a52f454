#include "common/kv/snapshot.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <type_traits>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "common/kv/transfer_frame.h"

namespace cachalot {
namespace {

constexpr size_t kMaxText = 64 << 10;
constexpr size_t kTableEnd = sizeof(SnapshotPreamble) + kSnapshotSections * sizeof(SnapshotTableEntry);
constexpr size_t kSmallest = kTableEnd + sizeof(uint64_t);

using Bytes = std::span<const std::byte>;
using Sections = std::array<Bytes, kSnapshotSections>;

/// The first section, field by field in this order; a text is a u32 length and its bytes.
struct SnapshotHeader {
  uint32_t state_format = kKvStateFormat;  // what a row holds; here: state gates have ape added (model.md 4.1)
  std::string compat;
  std::string layout;            // KvLayout::Describe()
  std::string row_type;          // of window, compressed and indexer rows
  std::vector<uint16_t> ratios;  // a layer each: 0, 4 or 128; u32 count before them
  int64_t tokens = 0;
};

std::string Name(uint32_t section) {
  constexpr auto kRows = static_cast<uint32_t>(SnapshotSection::kRows);
  if (section >= kRows && section < kRows + kPoolCount)
    return "rows of " + std::string(PoolName(static_cast<PoolTag>(section - kRows)));
  switch (static_cast<SnapshotSection>(section)) {
    case SnapshotSection::kHeader:
      return "header";
    case SnapshotSection::kCounts:
      return "counts";
    case SnapshotSection::kTokens:
      return "token ids";
    case SnapshotSection::kLogits:
      return "logits";
    default:
      return "sampler state";
  }
}

Bytes At(const Sections& sections, SnapshotSection section) {
  return sections[static_cast<uint32_t>(section)];
}

Bytes RowsOf(const Sections& sections, PoolTag pool) {
  return sections[static_cast<uint32_t>(SnapshotSection::kRows) + static_cast<uint32_t>(pool)];
}

Status Damaged(const std::string& what) { return DataLoss("KV snapshot: " + what); }
Status Mismatch(const std::string& what) { return FailedPrecondition("KV snapshot: " + what); }

SnapshotHeader HeaderOf(const KvLayout& layout, std::string_view compat, int64_t tokens) {
  SnapshotHeader header{kKvStateFormat,
                        std::string(compat),
                        layout.Describe(),
                        std::string(DTypeName(layout.pool(PoolTag::kSwaKv).row_type)),
                        {},
                        tokens};
  for (int layer = 0; layer < layout.num_layers(); ++layer) {
    int ratio = 0;
    for (PoolTag tag : {PoolTag::kCsaKv, PoolTag::kHcaKv})
      if (layout.ordinal(tag, layer) >= 0) ratio = layout.pool(tag).ratio;
    header.ratios.push_back(static_cast<uint16_t>(ratio));
  }
  return header;
}

// ----------------------------------------------------------------------------------------------------------
// writing

class Writer {
 public:
  template <typename T>
  requires std::is_arithmetic_v<T>
  void Put(T value) { PutBytes(std::as_bytes(std::span(&value, 1))); }
  void PutBytes(Bytes bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void PutText(const std::string& text) {
    Put(static_cast<uint32_t>(text.size()));
    PutBytes(std::as_bytes(std::span(text)));
  }
  void Reserve(size_t bytes) { bytes_.reserve(bytes); }

  /// Ends the section begun at the end of the one before and fills in its line of the table.
  void EndSection() {
    const Bytes payload = Bytes(bytes_).subspan(begin_);
    const SnapshotTableEntry entry{payload.size(), SnapshotChecksum(payload, section_)};
    std::memcpy(bytes_.data() + sizeof(SnapshotPreamble) + section_ * sizeof(entry), &entry, sizeof(entry));
    begin_ = bytes_.size();
    ++section_;
  }
  std::vector<std::byte> Seal() {
    CHECK(section_ == kSnapshotSections);
    SnapshotPreamble preamble;
    preamble.bytes = bytes_.size() + sizeof(uint64_t);
    std::memcpy(bytes_.data(), &preamble, sizeof(preamble));
    Put(KvChecksum(bytes_));
    return std::move(bytes_);
  }

 private:
  std::vector<std::byte> bytes_ = std::vector<std::byte>(kTableEnd);
  size_t begin_ = kTableEnd;
  uint32_t section_ = 0;
};

void PutHeader(Writer& out, const SnapshotHeader& header) {
  out.Put(header.state_format);
  out.PutText(header.compat);
  out.PutText(header.layout);
  out.PutText(header.row_type);
  out.Put(static_cast<uint32_t>(header.ratios.size()));
  out.PutBytes(std::as_bytes(std::span(header.ratios)));
  out.Put(header.tokens);
}

void PutCounts(Writer& out, const std::vector<RowRange>& ranges) {
  out.Put(static_cast<uint32_t>(ranges.size()));
  for (const RowRange& range : ranges) {
    out.Put(static_cast<uint16_t>(range.pool));
    out.Put(static_cast<uint16_t>(range.layer));
    out.Put(range.first);
    out.Put(range.count);
  }
}

void PutRows(Writer& out, const SequenceKv& kv, PoolTag pool, const std::vector<RowRange>& ranges) {
  const auto row_bytes = static_cast<size_t>(kv.layout().pool(pool).row_bytes());
  for (const RowRange& range : ranges) {
    if (range.pool != pool) continue;
    for (int64_t r = 0; r < range.count; ++r)
      out.PutBytes(Bytes(kv.RowBytes(pool, range.layer, range.first + r), row_bytes));
  }
}

int64_t RowBytesOf(const KvLayout& layout, const std::vector<RowRange>& ranges) {
  int64_t bytes = 0;
  for (const RowRange& range : ranges) bytes += range.count * layout.pool(range.pool).row_bytes();
  return bytes;
}

// ----------------------------------------------------------------------------------------------------------
// reading

/// Preamble, table and every checksum; afterwards the payloads are what a writer wrote.
StatusOr<Sections> Split(Bytes bytes) {
  ByteReader reader(bytes);
  const auto preamble = reader.Read<SnapshotPreamble>();
  if (!reader.ok()) return Damaged(std::to_string(bytes.size()) + " bytes: shorter than its preamble");
  if (preamble.magic != SnapshotPreamble::kMagic) return Damaged("magic: these bytes are not a snapshot");
  // Before any checksum: another version may keep them elsewhere.
  if (preamble.version != kSnapshotVersion)
    return Mismatch("version " + std::to_string(preamble.version) + "; this build reads version " +
                    std::to_string(kSnapshotVersion) + " only");
  if (preamble.bytes != bytes.size() || bytes.size() < kSmallest)
    return Damaged("length: " + std::to_string(bytes.size()) + " bytes, the preamble says " +
                   std::to_string(preamble.bytes) + ", the least possible is " + std::to_string(kSmallest));
  if (preamble.sections != kSnapshotSections)
    return Damaged("sections: " + std::to_string(preamble.sections) + ", wanted " +
                   std::to_string(kSnapshotSections));
  std::array<SnapshotTableEntry, kSnapshotSections> table;
  for (SnapshotTableEntry& entry : table) entry = reader.Read<SnapshotTableEntry>();
  Sections sections;
  for (uint32_t i = 0; i < kSnapshotSections; ++i) {
    const uint64_t left = reader.remaining() - sizeof(uint64_t);
    if (table[i].bytes > left || (i + 1 == kSnapshotSections && table[i].bytes < left))
      return Damaged("length of " + Name(i) + ": the table says " + std::to_string(table[i].bytes) +
                     " bytes, " + std::to_string(left) + " are left");
    sections[i] = reader.Take(table[i].bytes);
    if (SnapshotChecksum(sections[i], i) != table[i].checksum) return Damaged(Name(i) + ": wrong checksum");
  }
  if (reader.Read<uint64_t>() != KvChecksum(bytes.first(bytes.size() - sizeof(uint64_t))))
    return Damaged("wrong checksum over the whole");
  return sections;
}

std::string TakeText(ByteReader& reader) {
  const Bytes text = reader.Take(reader.Read<uint32_t>());
  return {reinterpret_cast<const char*>(text.data()), text.size()};
}

StatusOr<SnapshotHeader> ParseHeader(Bytes payload) {
  ByteReader reader(payload);
  SnapshotHeader header;
  header.state_format = reader.Read<uint32_t>();
  header.compat = TakeText(reader);
  header.layout = TakeText(reader);
  header.row_type = TakeText(reader);
  const auto layers = reader.Read<uint32_t>();
  for (uint32_t i = 0; i < layers && reader.ok(); ++i) header.ratios.push_back(reader.Read<uint16_t>());
  header.tokens = reader.Read<int64_t>();
  if (!reader.ok() || reader.remaining() != 0) return Damaged("header: malformed");
  return header;
}

std::string Quoted(const std::string& text) {  // a message stays short even if the field is not
  return "'" + (text.size() <= 200 ? text : text.substr(0, 200) + "...") + "'";
}

Status CheckHeader(const SnapshotHeader& got, const SnapshotHeader& want, int64_t capacity) {
  const auto differs = [](const std::string& field, const std::string& a, const std::string& b) {
    return Mismatch(field + " " + a + ", wanted " + b);
  };
  if (got.state_format != want.state_format)
    return differs("state format", std::to_string(got.state_format), std::to_string(want.state_format));
  if (got.compat != want.compat) return differs("compat", Quoted(got.compat), Quoted(want.compat));
  if (got.row_type != want.row_type) return differs("row type", Quoted(got.row_type), Quoted(want.row_type));
  if (got.ratios.size() != want.ratios.size())
    return differs("layers", std::to_string(got.ratios.size()), std::to_string(want.ratios.size()));
  for (size_t i = 0; i < want.ratios.size(); ++i)
    if (got.ratios[i] != want.ratios[i])
      return differs("ratio of layer " + std::to_string(i), std::to_string(got.ratios[i]),
                     std::to_string(want.ratios[i]));
  if (got.layout != want.layout) return differs("layout", Quoted(got.layout), Quoted(want.layout));
  if (got.tokens < 1) return Damaged("tokens: " + std::to_string(got.tokens));
  if (got.tokens > capacity)
    return Mismatch("tokens: " + std::to_string(got.tokens) + ", the sequence has room for " +
                    std::to_string(capacity));
  return OkStatus();
}

/// The counts must be those that the layout gives for n tokens: they are stored so that a reader of another
/// build notices when it would cut the rows differently.
Status CheckCounts(Bytes payload, const std::vector<RowRange>& want) {
  ByteReader reader(payload);
  const auto count = reader.Read<uint32_t>();
  if (count != want.size())
    return Damaged("counts: " + std::to_string(count) + " row ranges, wanted " + std::to_string(want.size()));
  for (const RowRange& range : want) {
    const auto pool = reader.Read<uint16_t>(), layer = reader.Read<uint16_t>();
    const auto first = reader.Read<int64_t>(), rows = reader.Read<int64_t>();
    if (pool != static_cast<uint16_t>(range.pool) || layer != range.layer || first != range.first ||
        rows != range.count)
      return Damaged("counts: rows [" + std::to_string(first) + ", +" + std::to_string(rows) + ") of pool " +
                     std::to_string(pool) + ", layer " + std::to_string(layer) + "; wanted [" +
                     std::to_string(range.first) + ", +" + std::to_string(range.count) + ") of " +
                     std::string(PoolName(range.pool)) + ", layer " + std::to_string(range.layer));
  }
  if (!reader.ok() || reader.remaining() != 0) return Damaged("counts: malformed");
  return OkStatus();
}

Status CheckRowBytes(const Sections& sections, const KvLayout& layout, const std::vector<RowRange>& ranges) {
  for (int p = 0; p < kPoolCount; ++p) {
    const auto pool = static_cast<PoolTag>(p);
    int64_t want = 0;
    for (const RowRange& range : ranges)
      if (range.pool == pool) want += range.count * layout.pool(pool).row_bytes();
    if (static_cast<int64_t>(RowsOf(sections, pool).size()) != want)
      return Damaged("rows of " + std::string(PoolName(pool)) + ": " +
                     std::to_string(RowsOf(sections, pool).size()) + " bytes, wanted " +
                     std::to_string(want));
  }
  return OkStatus();
}

template <typename T>
std::vector<T> Values(Bytes bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

StatusOr<SnapshotContents> ParseContents(const Sections& sections, int64_t tokens) {
  const Bytes ids = At(sections, SnapshotSection::kTokens), logits = At(sections, SnapshotSection::kLogits);
  const Bytes sampler = At(sections, SnapshotSection::kSampler);
  if (ids.size() != static_cast<size_t>(tokens) * sizeof(int32_t))
    return Damaged("token ids: " + std::to_string(ids.size()) + " bytes for " + std::to_string(tokens) +
                   " tokens");
  if (logits.size() % sizeof(float) != 0)
    return Damaged("logits: " + std::to_string(logits.size()) + " bytes are no whole number of values");
  SnapshotContents contents{Values<int32_t>(ids), Values<float>(logits), {sampler.begin(), sampler.end()}};
  const auto negative =
      std::find_if(contents.ids.begin(), contents.ids.end(), [](int32_t id) { return id < 0; });
  if (negative != contents.ids.end())
    return Damaged("token ids: " + std::to_string(*negative) + " at " +
                   std::to_string(negative - contents.ids.begin()));
  return contents;
}

void PlaceRows(const Sections& sections, const std::vector<RowRange>& ranges, SequenceKv* into) {
  std::array<size_t, kPoolCount> at{};
  for (const RowRange& range : ranges) {
    const auto row_bytes = static_cast<size_t>(into->layout().pool(range.pool).row_bytes());
    size_t& from = at[static_cast<int>(range.pool)];
    for (int64_t r = 0; r < range.count; ++r, from += row_bytes)
      std::memcpy(into->RowBytes(range.pool, range.layer, range.first + r),
                  RowsOf(sections, range.pool).data() + from, row_bytes);
  }
}

}  // namespace

uint64_t SnapshotChecksum(std::span<const std::byte> payload, uint32_t section) {
  return XXH3_64bits_withSeed(payload.data(), payload.size(), section);
}

StatusOr<std::vector<std::byte>> WriteSnapshot(const SequenceKv& kv, std::string_view compat,
                                               const SnapshotContents& contents) {
  CHECK(static_cast<int64_t>(contents.ids.size()) == kv.tokens() && compat.size() <= kMaxText);
  for (int32_t id : contents.ids) CHECK(id >= 0);
  if (kv.tokens() == 0) return Mismatch("the sequence has no tokens");
  if (!kv.whole()) return Mismatch("a failed step has overwritten rows of the sequence");
  const auto ranges = HandOffRows(kv.layout(), kv.tokens());
  Writer out;
  out.Reserve(kSmallest + RowBytesOf(kv.layout(), ranges) + contents.ids.size() * sizeof(int32_t) +
              contents.logits.size() * sizeof(float) + contents.sampler.size() + 2 * kMaxText);
  PutHeader(out, HeaderOf(kv.layout(), compat, kv.tokens()));
  out.EndSection();
  PutCounts(out, ranges);
  out.EndSection();
  out.PutBytes(std::as_bytes(std::span(contents.ids)));
  out.EndSection();
  for (int p = 0; p < kPoolCount; ++p) {
    PutRows(out, kv, static_cast<PoolTag>(p), ranges);
    out.EndSection();
  }
  out.PutBytes(std::as_bytes(std::span(contents.logits)));
  out.EndSection();
  out.PutBytes(contents.sampler);
  out.EndSection();
  return out.Seal();
}

StatusOr<SnapshotContents> ReadSnapshot(std::span<const std::byte> bytes, std::string_view compat,
                                        SequenceKv* into) {
  const KvLayout& layout = into->layout();
  ASSIGN_OR_RETURN(const Sections sections, Split(bytes));
  ASSIGN_OR_RETURN(const SnapshotHeader header, ParseHeader(At(sections, SnapshotSection::kHeader)));
  RETURN_IF_ERROR(CheckHeader(header, HeaderOf(layout, compat, header.tokens), into->capacity()));
  const auto ranges = HandOffRows(layout, header.tokens);
  RETURN_IF_ERROR(CheckCounts(At(sections, SnapshotSection::kCounts), ranges));
  RETURN_IF_ERROR(CheckRowBytes(sections, layout, ranges));
  ASSIGN_OR_RETURN(SnapshotContents contents, ParseContents(sections, header.tokens));
  // Nothing below can fail.
  PlaceRows(sections, ranges, into);
  into->SetTokens(header.tokens);
  return contents;
}

}  // namespace cachalot
