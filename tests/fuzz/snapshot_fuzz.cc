// A snapshot. Bit 0 of the first byte: preamble, lengths and checksums are put right first.

#include "common/kv/snapshot.h"
#include "common/kv/transfer_frame.h"
#include "tests/fuzz/kv_fixture.h"

namespace cachalot::fuzz {
namespace {

constexpr std::string_view kCompat = "fuzz";
constexpr size_t kTable = sizeof(SnapshotPreamble),
                 kPayloads = kTable + kSnapshotSections * sizeof(SnapshotTableEntry);

void Repair(Bytes* bytes) {
  if (bytes->size() < kPayloads + sizeof(uint64_t)) return;
  SnapshotPreamble preamble;
  preamble.bytes = bytes->size();
  std::memcpy(bytes->data(), &preamble, sizeof(preamble));
  size_t at = kPayloads;
  for (uint32_t i = 0; i < kSnapshotSections; ++i) {
    SnapshotTableEntry entry;
    std::byte* place = bytes->data() + kTable + i * sizeof(entry);
    std::memcpy(&entry, place, sizeof(entry));
    const size_t left = bytes->size() - sizeof(uint64_t) - at;
    entry.bytes = i + 1 == kSnapshotSections ? left : std::min<uint64_t>(entry.bytes, left);
    entry.checksum = SnapshotChecksum(std::span(*bytes).subspan(at, entry.bytes), i);
    std::memcpy(place, &entry, sizeof(entry));
    at += entry.bytes;
  }
  const uint64_t whole = KvChecksum(std::span(*bytes).first(bytes->size() - sizeof(whole)));
  std::memcpy(bytes->data() + bytes->size() - sizeof(whole), &whole, sizeof(whole));
}

void CheckSnapshot(std::span<const std::byte> bytes) {
  SequenceKv kv = TinyKv();
  kv.SetTokens(7);
  const Bytes before = ContentOf(kv);
  const auto contents = ReadSnapshot(bytes, kCompat, &kv);
  if (!contents.ok()) {
    const StatusCode code = contents.status().code();
    CHECK(code == StatusCode::kDataLoss || code == StatusCode::kFailedPrecondition);
    CHECK(Same(ContentOf(kv), before) && kv.tokens() == 7);
    return;
  }
  CHECK(static_cast<int64_t>(contents->ids.size()) == kv.tokens());
  const auto again = WriteSnapshot(kv, kCompat, *contents);
  CHECK(again.ok() && Same(*again, bytes));
}

std::string Written(int64_t tokens, std::string_view compat, size_t logits, size_t sampler) {
  SequenceKv kv = TinyKv();
  kv.SetTokens(tokens);
  SnapshotContents contents{std::vector<int32_t>(tokens, 3), std::vector<float>(logits, .5f), Bytes(sampler)};
  return Text(*WriteSnapshot(kv, compat, contents));
}

}  // namespace

std::vector<Seed> Seeds() {
  const std::string as_is(1, '\2'), repaired(1, '\1');
  return {{"short", as_is + Written(1, kCompat, 0, 0)},
          {"full", repaired + Written(9, kCompat, 5, 7)},
          {"hca", repaired + Written(130, kCompat, 0, 0)},
          {"other_compat", repaired + Written(2, "other", 1, 1)}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  auto bytes = cachalot::fuzz::CopyOf(data + 1, size - 1);
  if (data[0] & 1) cachalot::fuzz::Repair(&bytes);
  cachalot::fuzz::CheckSnapshot(bytes);
  return 0;
}
