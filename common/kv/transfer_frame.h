#pragma once
// Frames of the KV hand-off (protos/cachalot/v1/kv_transfer.proto): a 64-byte header, then the payload. Little-endian.
// The sender pushes rows; the receiver checks and places every frame itself. Pure encoding, no I/O.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/kv/block_pool.h"
#include "common/kv/pool_spec.h"

namespace cachalot {

/// Version of the rows on the wire: fp32 rows; state rows are (c, g with ape added) by position.
inline constexpr uint32_t kKvStateFormat = 1;

enum class KvFrameKind : uint8_t {
  kRows = 1,     // payload: rows x row_values f32
  kCommit = 2,   // payload: KvCommit
  kVerdict = 3,  // receiver to sender, payload: i32 status code, message bytes
};

struct KvFrameHeader {
  uint32_t magic = kMagic;
  uint16_t version = kKvStateFormat;
  KvFrameKind kind = KvFrameKind::kRows;
  PoolTag pool{};
  uint64_t lease = 0;
  uint64_t epoch = 0;  // of the lease's owner
  uint32_t attempt = 0;
  uint16_t layer = 0;
  uint16_t reserved0 = 0;
  int64_t first_row = 0;
  uint32_t rows = 0;
  uint32_t payload_bytes = 0;
  uint64_t checksum = 0;  // XXH3-64 of the payload
  uint64_t header_checksum = 0;  // XXH3-64 of what stands before: a wrong bit here would place rows elsewhere

  static constexpr uint32_t kMagic = 0x31564b43;  // "CKV1"
};
static_assert(sizeof(KvFrameHeader) == 64);

/// In the metadata of a Push call: the lease in decimal. So the receiver knows whose a stream is before its first frame,
/// which may be long in coming: the job waits in a queue.
inline constexpr char kLeaseMetadata[] = "cachalot-lease";

uint64_t KvChecksum(std::span<const std::byte> bytes);

/// Rows of `range` from `kv`, header and payload in one buffer.
std::vector<std::byte> EncodeRows(const SequenceKv& kv, const RowRange& range, uint64_t lease, uint64_t epoch,
                                  uint32_t attempt);

struct KvFrameView {
  KvFrameHeader header;
  std::span<const std::byte> payload;
};

/// Splits and checks a frame: DATA_LOSS names what is wrong: magic, version, header, kind, length, checksum.
StatusOr<KvFrameView> ParseKvFrame(std::span<const std::byte> frame);

/// What a complete hand-off of `tokens` tokens amounts to; sender and receiver both build one and compare.
struct KvTally {
  struct Entry {
    PoolTag pool{};
    int layer = 0;
    int64_t rows = 0;
    bool operator==(const Entry&) const = default;
  };
  std::vector<Entry> entries;  // ascending (pool, layer)
  uint64_t checksum = 0;       // order-independent sum over the frames

  void Add(const KvFrameHeader& header);
  bool operator==(const KvTally&) const = default;
};

struct KvCommit {
  int64_t tokens = 0;
  int32_t first_token = 0;
  int64_t first_index = 0;  // its output index
  KvTally tally;
};

std::vector<std::byte> EncodeCommit(const KvCommit& commit, uint64_t lease, uint64_t epoch, uint32_t attempt);
StatusOr<KvCommit> DecodeCommit(std::span<const std::byte> payload);

std::vector<std::byte> EncodeVerdict(const Status& verdict, uint64_t lease, uint64_t epoch, uint32_t attempt);
/// The verdict inside the frame's payload (OK included); DATA_LOSS when malformed.
Status DecodeVerdict(std::span<const std::byte> payload);

/// Rows that a hand-off of n tokens must consist of: AppendedRows(0, n) and StateRows(n).
std::vector<RowRange> HandOffRows(const KvLayout& layout, int64_t n);

/// A hand-off inside one process: `to`, of the same layout and with room for n tokens, goes on as `from`,
/// which has n tokens, would.
void CopyHandOff(const SequenceKv& from, int64_t n, SequenceKv* to);

/// Places the rows of one hand-off and says when it is complete. Not thread-safe.
class KvReceiver {
 public:
  /// Rows go into `kv`, which must have room for `max_tokens` tokens.
  KvReceiver(SequenceKv* kv, int64_t max_tokens) : kv_(kv), max_tokens_(max_tokens) {}

  /// Starts over for a higher attempt.
  void Restart();
  /// Checks bounds and that the rows follow those received before, then places them. DATA_LOSS otherwise.
  Status Place(const KvFrameView& frame);
  /// Checks tokens, every row and the tally, then sets the KV's token count. DATA_LOSS names what is missing.
  Status Commit(const KvCommit& commit);

 private:
  SequenceKv* kv_;
  const int64_t max_tokens_;
  KvTally tally_;
  std::vector<RowRange> received_;  // one contiguous range a (pool, layer)
};

}  // namespace cachalot
