#pragma once
// Snapshots: one sequence as bytes, for files and for prefix reuse (model.md 4.4). Versioned and strict: a reader
// takes exactly what a writer of its own version made, and checks all of it before it touches a KV. Pure
// encoding, no I/O.
//
//   preamble | table of all sections | payloads back to back, no gaps | XXH3-64 of everything before
//
// Little-endian. docs/kv.md lists the payloads.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/kv/block_pool.h"

namespace cachalot {

inline constexpr uint32_t kSnapshotVersion = 1;

/// Sections in the order of the file. All are always there; what is optional may be empty.
enum class SnapshotSection : uint32_t {
  kHeader,                       // what the rows belong to, see SnapshotHeader in snapshot.cc
  kCounts,                       // rows per pool and layer
  kTokens,                       // i32 ids [n]
  kRows,                         // kPoolCount sections in PoolTag order: rows by layer, then row
  kLogits = kRows + kPoolCount,  // f32 [vocab] of the last token, or empty
  kSampler,                      // the sampler's own bytes, or empty
};
inline constexpr uint32_t kSnapshotSections = static_cast<uint32_t>(SnapshotSection::kSampler) + 1;

struct SnapshotPreamble {
  uint64_t magic = kMagic;
  uint32_t version = kSnapshotVersion;
  uint32_t sections = kSnapshotSections;
  uint64_t bytes = 0;  // of the whole snapshot

  static constexpr uint64_t kMagic = 0x50414e53544c4843;  // "CHLTSNAP"
};
static_assert(sizeof(SnapshotPreamble) == 24);

struct SnapshotTableEntry {
  uint64_t bytes = 0;     // of the payload
  uint64_t checksum = 0;  // XXH3-64 of the payload, seeded with the section's number
};
static_assert(sizeof(SnapshotTableEntry) == 16);

/// What a snapshot holds beside the rows.
struct SnapshotContents {
  std::vector<int32_t> ids;        // every token of the sequence: kv.tokens() ids, none negative
  std::vector<float> logits;       // of the last token; empty if not kept
  std::vector<std::byte> sampler;  // opaque; empty if not kept
};

/// `compat` says what else must be equal for the rows to mean the same (weights, mode, numerics): opaque
/// here, at most 64 KiB. FAILED_PRECONDITION for a sequence without tokens or one that a failed step has
/// damaged.
StatusOr<std::vector<std::byte>> WriteSnapshot(const SequenceKv& kv, std::string_view compat,
                                               const SnapshotContents& contents);

/// Replaces what `into` holds by the snapshot. On an error `into` is as it was.
/// DATA_LOSS: the bytes are damaged, and the message names the field. FAILED_PRECONDITION: the bytes are
/// good, but of another version, another compat, layout or model shape, or longer than `into` has room for.
StatusOr<SnapshotContents> ReadSnapshot(std::span<const std::byte> bytes, std::string_view compat,
                                        SequenceKv* into);

/// The seeded checksum of a section's payload, for tools and tests.
uint64_t SnapshotChecksum(std::span<const std::byte> payload, uint32_t section);

}  // namespace cachalot
