#include "common/tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "common/base/check.h"
#include "common/tokenizer/byte_alphabet.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;

constexpr size_t kShortBytes = 32;  // up to here looking at all pairs for each merge beats a heap
constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr char kUseCheckpoint[] = "; use the tokenizer.json that came with the checkpoint";

/// Both sides of a merge, or nothing if `entry` is neither "a b" nor ["a", "b"].
std::optional<std::pair<std::string, std::string>> MergeSides(const Json& entry) {
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    return std::pair(entry[0].get<std::string>(), entry[1].get<std::string>());
  }
  if (!entry.is_string()) return std::nullopt;
  const std::string& text = entry.get_ref<const std::string&>();
  const size_t space = text.find(' ');  // a space inside a token is spelled U+0120, so this one separates
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) return std::nullopt;
  return std::pair(text.substr(0, space), text.substr(space + 1));
}

Status CheckOptions(const Json& model, const std::string& file) {
  const auto refuse = [&](const std::string& key, const std::string& wanted) {
    return InvalidArgument(file + ": model." + key + " is " + model[key].dump(-1, ' ', true) + ", expected " +
                           wanted + kUseCheckpoint);
  };
  if (!model.is_object() || !model.contains("type")) {
    return InvalidArgument(file + ": has no model with a type, expected a BPE model" + kUseCheckpoint);
  }
  if (model["type"] != "BPE") return refuse("type", "\"BPE\"");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.contains(key) && !model[key].is_null() && model[key] != "") return refuse(key, "null");
  }
  for (const char* key : {"byte_fallback", "ignore_merges"}) {
    if (model.contains(key) && !model[key].is_null() && model[key] != false) return refuse(key, "false");
  }
  if (model.contains("dropout") && !model["dropout"].is_null() && model["dropout"] != 0) {
    return refuse("dropout", "null (encoding must not be random)");
  }
  return OkStatus();
}

/// Sorts what is made of ascending runs: linear for a bounded number of them. `starts` is room for it.
void MergeRuns(std::vector<uint32_t>* values, std::vector<uint32_t>* starts) {
  starts->assign(1, 0);
  for (uint32_t i = 1; i < values->size(); ++i) {
    if ((*values)[i] < (*values)[i - 1]) starts->push_back(i);
  }
  const auto at = [&](size_t run) {
    return run < starts->size() ? values->begin() + (*starts)[run] : values->end();
  };
  while (starts->size() > 1) {
    size_t kept = 0;
    for (size_t run = 0; run < starts->size(); run += 2) {
      if (run + 1 < starts->size()) std::inplace_merge(at(run), at(run + 1), at(run + 2));
      (*starts)[kept++] = (*starts)[run];
    }
    starts->resize(kept);
  }
}

}  // namespace

StatusOr<Bpe> Bpe::FromJson(const Json& model, const std::string& file) {
  RETURN_IF_ERROR(CheckOptions(model, file));
  Bpe bpe;
  RETURN_IF_ERROR(bpe.ReadVocabulary(model, file));
  RETURN_IF_ERROR(bpe.ReadMerges(model, file));
  bpe.FindWords();
  return bpe;
}

Status Bpe::ReadVocabulary(const Json& model, const std::string& file) {
  const auto vocab = model.find("vocab");
  if (vocab == model.end() || !vocab->is_object() || vocab->empty()) {
    return InvalidArgument(file + ": model.vocab must be a non-empty object from token to id" +
                           kUseCheckpoint);
  }
  std::unordered_map<int32_t, std::string> by_id;
  for (const auto& [spelling, value] : vocab->items()) {
    if (!value.is_number_integer() || value < 0 || value > kMaxTokenId) {
      return InvalidArgument(file + ": model.vocab['" + spelling + "'] is " + value.dump(-1, ' ', true) +
                             ", expected an integer id from 0 to " + std::to_string(kMaxTokenId) +
                             kUseCheckpoint);
    }
    const int32_t id = value.get<int32_t>();
    if (const auto [other, is_new] = by_id.emplace(id, spelling); !is_new) {
      return InvalidArgument(file + ": model.vocab gives id " + std::to_string(id) + " to '" + other->second +
                             "' and to '" + spelling + "'" + kUseCheckpoint);
    }
    vocabulary_.emplace(spelling, id);
    if (emitted_.size() <= static_cast<size_t>(id)) emitted_.resize(id + 1);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto entry = vocabulary_.find(AlphabetSymbol(static_cast<unsigned char>(byte)));
    if (entry == vocabulary_.end()) {
      return InvalidArgument(file + ": model.vocab has no token for byte " + std::to_string(byte) +
                             ", a byte-level vocabulary has all 256" + kUseCheckpoint);
    }
    byte_id_[byte] = entry->second;
    emitted_[entry->second] = true;
  }
  return OkStatus();
}

Status Bpe::ReadMerges(const Json& model, const std::string& file) {
  const auto merges = model.find("merges");
  if (merges == model.end() || !merges->is_array()) {
    return InvalidArgument(file + ": model.merges must be an array" + kUseCheckpoint);
  }
  merges_ = MergeTable(merges->size());
  for (size_t rank = 0; rank < merges->size(); ++rank) {
    const std::string where = file + ": model.merges[" + std::to_string(rank) + "]";
    const auto sides = MergeSides((*merges)[rank]);
    if (!sides) {
      return InvalidArgument(where + " is " + (*merges)[rank].dump(-1, ' ', true) +
                             ", expected \"a b\" or [\"a\", \"b\"]" + kUseCheckpoint);
    }
    int32_t ids[3];
    const std::string spellings[3] = {sides->first, sides->second, sides->first + sides->second};
    for (int i = 0; i < 3; ++i) {
      const auto entry = vocabulary_.find(spellings[i]);
      if (entry == vocabulary_.end()) {
        return InvalidArgument(where + " needs the token '" + spellings[i] +
                               "', which model.vocab does not have" + kUseCheckpoint);
      }
      ids[i] = entry->second;
    }
    // A pair given twice has its last rank, as in HF tokenizers.
    merges_.Set(ids[0], ids[1], {static_cast<uint32_t>(rank), ids[2]});
    emitted_[ids[2]] = true;
  }
  return OkStatus();
}

bool Bpe::CanEmit(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < emitted_.size() && emitted_[id];
}

void Bpe::Propose(uint32_t left, Scratch* scratch) const {
  const auto& symbols = scratch->symbols_;
  const uint32_t right = symbols[left].next;
  if (right == kNone) return;
  const MergeTable::Merge merge = merges_.Find(symbols[left].id, symbols[right].id);
  if (merge.rank == MergeTable::kNoMerge) return;
  uint32_t& place = scratch->bucket_of_rank_[merge.rank];
  if (place == kNone) {
    if (scratch->free_.empty()) {
      scratch->free_.push_back(static_cast<uint32_t>(scratch->buckets_.size()));
      scratch->buckets_.emplace_back();
    }
    place = scratch->free_.back();
    scratch->free_.pop_back();
    auto& bucket = scratch->buckets_[place];
    bucket.left = symbols[left].id;
    bucket.right = symbols[right].id;
    bucket.merged = merge.merged;
    scratch->ranks_.push_back(merge.rank);
    std::push_heap(scratch->ranks_.begin(), scratch->ranks_.end(), std::greater<>());
  }
  scratch->buckets_[place].at.push_back(left);
}

void Bpe::Join(uint32_t at, int32_t merged, Scratch* scratch) const {
  auto& symbols = scratch->symbols_;
  auto& left = symbols[at];
  symbols[left.next].id = -1;
  left.id = merged;
  left.next = symbols[left.next].next;
  if (left.next != kNone) symbols[left.next].previous = at;
  if (left.previous != kNone) Propose(left.previous, scratch);
  Propose(at, scratch);
}

void Bpe::MergeAll(Scratch* scratch) const {
  const auto& symbols = scratch->symbols_;
  auto& ranks = scratch->ranks_;
  auto& current = scratch->current_;
  while (!ranks.empty()) {
    std::pop_heap(ranks.begin(), ranks.end(), std::greater<>());
    const uint32_t rank = ranks.back();
    ranks.pop_back();
    const uint32_t place = std::exchange(scratch->bucket_of_rank_[rank], kNone);
    auto& bucket = scratch->buckets_[place];
    const int32_t left = bucket.left, right = bucket.right, merged = bucket.merged;
    current.swap(bucket.at);
    bucket.at.clear();
    scratch->free_.push_back(place);
    MergeRuns(&current, &scratch->runs_);
    for (size_t i = 0; i < current.size(); ++i) {
      const uint32_t at = current[i];
      // Symbols only grow, so equal ids mean that neither side has changed since the proposal.
      if (symbols[at].id != left || symbols[at].next == kNone || symbols[symbols[at].next].id != right) continue;
      Join(at, merged, scratch);
      if (ranks.empty() || ranks.front() > rank) continue;
      // Only where a merge comes before one that makes a side of it.
      for (size_t rest = i + 1; rest < current.size(); ++rest) {
        if (symbols[current[rest]].id == left) Propose(current[rest], scratch);
      }
      break;
    }
  }
}

/// A token that can be emitted need not come out for its own bytes: an earlier merge may split them
/// otherwise.
void Bpe::FindWords() {
  words_ = WordTable(vocabulary_.size());
  std::vector<int32_t> ids;
  Scratch scratch;
  for (const auto& [spelling, id] : vocabulary_) {
    if (!emitted_[id]) continue;
    const std::string bytes = BytesOfSpelling(spelling).value_or("");
    if (bytes.empty() || bytes.size() > WordTable::kMaxBytes) continue;
    ids.clear();
    if (bytes.size() <= kShortBytes) {
      EncodeShort(bytes, &ids);
    } else {
      EncodeLong(bytes, &scratch, &ids);
    }
    if (ids.size() == 1 && ids[0] == id) words_.Add(bytes, id);
  }
}

void Bpe::EncodeShort(std::string_view piece, std::vector<int32_t>* ids) const {
  std::array<int32_t, kShortBytes> symbols;
  std::array<MergeTable::Merge, kShortBytes> merges;  // of a symbol with its right neighbour
  size_t count = piece.size();
  for (size_t i = 0; i < count; ++i) symbols[i] = byte_id_[static_cast<unsigned char>(piece[i])];
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = merges_.Find(symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == MergeTable::kNoMerge) break;
    symbols[best] = merges[best].merged;
    --count;
    for (size_t i = best + 1; i < count; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i - 1] = merges[i];
    }
    if (best > 0) merges[best - 1] = merges_.Find(symbols[best - 1], symbols[best]);
    if (best + 1 < count) merges[best] = merges_.Find(symbols[best], symbols[best + 1]);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.begin() + count);
}

void Bpe::EncodeLong(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
  CHECK(piece.size() < (size_t{1} << 31));
  const uint32_t count = static_cast<uint32_t>(piece.size());
  auto& symbols = scratch->symbols_;
  symbols.resize(count);
  if (scratch->bucket_of_rank_.size() != merges_.ranks()) scratch->bucket_of_rank_.assign(merges_.ranks(), kNone);
  for (uint32_t i = 0; i < count; ++i) {
    symbols[i] = {byte_id_[static_cast<unsigned char>(piece[i])], i == 0 ? kNone : i - 1,
                  i + 1 == count ? kNone : i + 1};
  }
  for (uint32_t i = 0; i + 1 < count; ++i) Propose(i, scratch);
  MergeAll(scratch);
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) ids->push_back(symbols[i].id);
}

void Bpe::Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (piece.empty()) return;
  if (const int32_t word = words_.Find(piece); word >= 0) {
    ids->push_back(word);
  } else if (piece.size() <= kShortBytes) {
    EncodeShort(piece, ids);
  } else {
    EncodeLong(piece, scratch, ids);
  }
}

}  // namespace cachalot
