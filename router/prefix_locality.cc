#include "router/prefix_locality.h"

#include <algorithm>

namespace cachalot {
namespace {

constexpr int64_t kBlock = PrefixIndex::kBlockTokens;
constexpr size_t kMaxHolders = 8;  // of a block: more copies of a prefix give no better choice

}  // namespace

PrefixLocality::Prefix PrefixLocality::PrefixOf(std::span<const int32_t> context) {
  Prefix prefix;
  PrefixKey key = PrefixIndex::Root("");
  for (size_t at = 0; at + kBlock <= context.size(); at += kBlock) {
    key = HashPrefixBlock(key, context.subspan(at, kBlock));
    prefix.push_back(key);
  }
  return prefix;
}

void PrefixLocality::Remember(const Prefix& prefix, PrefixHolder holder) {
  // Backwards: the end of a prompt goes before its beginning, without which it is worth nothing.
  for (size_t i = std::min(prefix.size(), max_blocks_); i-- > 0;) {
    const auto [at, is_new] = blocks_.try_emplace(prefix[i]);
    if (is_new) {
      used_.push_front({prefix[i], {}});
      at->second = used_.begin();
    } else {
      used_.splice(used_.begin(), used_, at->second);
    }
    std::vector<PrefixHolder>& holders = used_.front().holders;
    std::erase_if(holders, [&](const PrefixHolder& other) { return other.worker == holder.worker; });
    if (holders.size() == kMaxHolders) holders.erase(holders.begin());
    holders.push_back(holder);
  }
  for (; used_.size() > max_blocks_; used_.pop_back()) blocks_.erase(used_.back().key);
}

std::map<PrefixHolder, int64_t> PrefixLocality::Find(const Prefix& prefix) const {
  std::map<PrefixHolder, int64_t> found;
  for (size_t i = 0; i < prefix.size(); ++i) {
    const auto at = blocks_.find(prefix[i]);
    if (at == blocks_.end()) break;
    const auto before = static_cast<int64_t>(i) * kBlock;
    bool any = false;
    for (const PrefixHolder& holder : at->second->holders) {
      const auto known = found.find(holder);
      if (i > 0 && (known == found.end() || known->second != before)) continue;
      found[holder] = before + kBlock;
      any = true;
    }
    if (!any) break;
  }
  return found;
}

}  // namespace cachalot
