#pragma once
// Byte-level BPE: the `model` of tokenizer.json. Pieces start as bytes; the pair of neighbours with the
// lowest merge rank joins first, of equal ranks the leftmost.

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"
#include "common/tokenizer/bpe_tables.h"

namespace cachalot {

/// Ids index arrays: a typing error in a file must not take the memory.
inline constexpr int64_t kMaxTokenId = (1 << 24) - 1;

class Bpe {
 public:
  /// Room that Encode reuses from piece to piece; one per thread.
  class Scratch {
    friend class Bpe;
    struct Symbol {
      int32_t id;  // -1: merged into its left neighbour
      uint32_t previous, next;
    };
    // Where one pair was seen. Pairs and ranks correspond, so a rank has one bucket.
    struct Bucket {
      int32_t left, right, merged;
      std::vector<uint32_t> at;  // indices of left symbols, in a few ascending runs
    };
    std::vector<Symbol> symbols_;
    std::vector<Bucket> buckets_;
    std::vector<uint32_t> free_;            // of buckets_
    std::vector<uint32_t> bucket_of_rank_;  // by rank; none outside Encode
    std::vector<uint32_t> ranks_;           // that have a bucket: a heap, the lowest in front
    std::vector<uint32_t> current_, runs_;
  };

  /// Merges may be "a b" strings or ["a", "b"] pairs. InvalidArgument with `file` and the entry for anything
  /// that plain byte-level BPE does not have (dropout, prefixes, byte fallback, ...) and for an inconsistent
  /// vocabulary.
  static StatusOr<Bpe> FromJson(const nlohmann::json& model, const std::string& file);

  /// Appends the tokens of one piece of at most 2^31 bytes. Thread-safe. Linear in its bytes as long as merges come
  /// behind those that make their sides, which is how BPE is trained; right for any order.
  void Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  /// Entries as the file spells them (byte alphabet), by spelling.
  const std::unordered_map<std::string, int32_t>& vocabulary() const { return vocabulary_; }

  /// Whether Encode can emit `id`, that is whether it is a single byte or the result of a merge.
  bool CanEmit(int32_t id) const;

 private:
  Status ReadVocabulary(const nlohmann::json& model, const std::string& file);
  Status ReadMerges(const nlohmann::json& model, const std::string& file);
  void Propose(uint32_t left, Scratch* scratch) const;
  void Join(uint32_t at, int32_t merged, Scratch* scratch) const;
  void MergeAll(Scratch* scratch) const;
  void FindWords();
  void EncodeShort(std::string_view piece, std::vector<int32_t>* ids) const;
  void EncodeLong(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  std::unordered_map<std::string, int32_t> vocabulary_;
  MergeTable merges_;
  WordTable words_;            // most pieces of prose are one token: they need no merging
  std::vector<bool> emitted_;  // by id
  std::array<int32_t, 256> byte_id_;
};

}  // namespace cachalot
