#pragma once
// Keeps a pool of workers as flags and DNS say, while requests run (docs/architecture.md, Discovery).

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/log.h"
#include "common/discovery/name_watch.h"
#include "common/discovery/plan_members.h"
#include "common/rpc/event.h"
#include "router/member_client.h"
#include "router/worker_pool.h"

namespace cachalot {

struct MembershipOptions {
  NameWatchOptions names;                          // a lost member is a reason to ask soon
  Duration look = std::chrono::milliseconds(100);  // for members that were lost or became idle
};

/// Loop thread only, but for the constructor. Outlives the loop's tasks.
template <typename Worker>
class Membership {
 public:
  struct Made {
    std::unique_ptr<Worker> worker;
    MemberClient* client = nullptr;  // the same object
  };
  using Make = std::function<Made(const std::string& address)>;

  /// `what`: "prefill" or "decode", for the log. `resolver` may be null when no seed is a name; it must be gone
  /// before the loop is.
  Membership(rpc::Loop* loop, std::string what, const std::vector<Seed>& seeds, Resolver* resolver,
             WorkerPool<Worker>* pool, Make make, MembershipOptions options = {})
      : loop_(loop),
        what_(std::move(what)),
        pool_(pool),
        make_(std::move(make)),
        options_(options),
        names_(what_ + " workers", NamesAmong(seeds), resolver, options.names),
        wake_(loop) {
    for (const Seed& seed : seeds)
      if (!seed.dns()) listed_.push_back(seed.address);
  }

  /// Runs until the loop stops: spawn once.
  rpc::Task<void> Run() {
    for (const std::string& address : listed_) Add(address, true);
    const Duration tick = std::min(options_.look, options_.names.interval);
    while (!names_.empty() && !loop_->stopping()) {
      const bool lost = Apply();
      names_.Ask(loop_->Now(), lost, [this, loop = loop_] { loop->Post([this] { wake_.Set(); }); });
      co_await wake_.WaitFor(tick);
      wake_.Reset();
    }
  }

  /// What is wrong with the names, or "".
  std::string Trouble() const { return names_.Trouble(); }

 private:
  struct Member {
    std::string address;
    bool listed = false, draining = false;
    bool was_usable = true;  // at the last look; a new one counts, so that none is lost between two looks
    size_t id = 0;
    Worker* worker = nullptr;
    MemberClient* client = nullptr;
  };

  void Add(const std::string& address, bool listed) {
    Made made = make_(address);
    Member member{.address = address, .listed = listed, .worker = made.worker.get(), .client = made.client};
    member.id = pool_->Add(std::move(made.worker));
    if (!listed) LogInfo(what_ + " worker " + address + " is new in DNS");
    loop_->Spawn(RunMember(this, member.id, member.client), "worker client");
    members_.push_back(member);
  }

  static rpc::Task<void> RunMember(Membership* self, size_t id, MemberClient* client) {
    co_await client->Run();
    while (!self->loop_->stopping() && !self->pool_->Erase(id))
      co_await rpc::SleepFor(self->loop_, self->options_.look, &self->loop_->scope());
  }

  static std::vector<Seed> NamesAmong(const std::vector<Seed>& seeds) {
    std::vector<Seed> names;
    std::copy_if(seeds.begin(), seeds.end(), std::back_inserter(names), [](const Seed& seed) { return seed.dns(); });
    return names;
  }

  /// True when a member was lost since the last call.
  bool Apply() {
    bool lost = false;
    std::vector<MemberState> states;
    for (Member& member : members_) {
      const bool usable = member.worker->health().ok();
      lost |= member.was_usable && !usable;
      member.was_usable = usable;
      states.push_back({member.address, member.listed, member.draining, pool_->Busy(member.id),
                        member.client->connection().ok()});
    }
    MemberPlan plan = PlanMembers(states, names_.Addresses());
    for (const size_t i : plan.drain) Drain(members_[i]);
    for (const size_t i : plan.restore)
      if (!Restore(members_[i]) && !states[i].busy) plan.remove.push_back(i);  // and comes as a new one
    std::sort(plan.remove.begin(), plan.remove.end(), std::greater<>());
    for (const size_t i : plan.remove) Remove(i);
    for (const std::string& address : plan.add) Add(address, false);
    return lost;
  }

  void Drain(Member& member) {
    LogInfo(what_ + " worker " + member.address + " has left DNS: it gets no new requests");
    member.draining = true;
    pool_->SetDraining(member.id, true);
    member.client->Leave();
  }

  bool Restore(Member& member) {
    if (!member.client->Rejoin()) return false;
    LogInfo(what_ + " worker " + member.address + " is back in DNS");
    member.draining = false;
    pool_->SetDraining(member.id, false);
    return true;
  }

  void Remove(size_t i) {
    LogInfo(what_ + " worker " + members_[i].address + " is removed");
    members_[i].client->Stop();
    members_.erase(members_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  rpc::Loop* const loop_;
  const std::string what_;
  WorkerPool<Worker>* const pool_;
  const Make make_;
  const MembershipOptions options_;
  NameWatch names_;
  std::vector<std::string> listed_;
  std::vector<Member> members_;
  rpc::Event wake_;
};

}  // namespace cachalot
