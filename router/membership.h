#pragma once
// Keeps a pool of workers as flags and DNS say, while requests run (docs/architecture.md, Discovery).

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/log.h"
#include "common/discovery/plan_members.h"
#include "common/discovery/resolver.h"
#include "common/discovery/seed.h"
#include "common/rpc/event.h"
#include "router/member_client.h"
#include "router/worker_pool.h"

namespace cachalot {

struct MembershipOptions {
  Duration interval = std::chrono::seconds(5);  // between two questions for a name
  /// A lost member is a reason to ask at once, but not more often than this.
  Duration at_least = std::chrono::milliseconds(200);
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
  Membership(rpc::Loop* loop, std::string what, std::vector<Seed> seeds, Resolver* resolver,
             WorkerPool<Worker>* pool, Make make, MembershipOptions options = {})
      : loop_(loop),
        what_(std::move(what)),
        resolver_(resolver),
        pool_(pool),
        make_(std::move(make)),
        options_(options),
        wake_(loop) {
    for (Seed& seed : seeds) {
      if (seed.dns())
        names_.push_back({std::move(seed)});
      else
        listed_.push_back(std::move(seed.address));
    }
  }

  /// Runs until the loop stops: spawn once.
  rpc::Task<void> Run() {
    for (const std::string& address : listed_) Add(address, true);
    const Duration tick = std::min(options_.look, options_.interval);
    while (!names_.empty() && !loop_->stopping()) {
      Apply();
      AskWhatIsDue();
      co_await wake_.WaitFor(tick);
      wake_.Reset();
    }
  }

  /// What is wrong with the names, or "": "dns:NAME:PORT: why".
  std::string Trouble() const {
    std::string trouble;
    for (const Name& name : names_)
      if (!name.trouble.ok())
        trouble += (trouble.empty() ? "" : "; ") + name.seed.text + ": " + StatusMessage(name.trouble);
    return trouble;
  }

 private:
  struct Name {
    Seed seed;
    std::vector<std::string> addresses{};  // of the last answer that had any
    Status trouble = Unavailable("not resolved yet");
    bool asking = false;
    TimePoint asked{};
  };
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

  void AskWhatIsDue() {
    const TimePoint now = loop_->Now();
    for (size_t i = 0; i < names_.size(); ++i) {
      Name& name = names_[i];
      if (name.asking || (name.asked != TimePoint() && now < name.asked + Pause(name))) continue;
      name.asking = true;
      name.asked = now;
      resolver_->Resolve(name.seed.name, [this, i, loop = loop_](StatusOr<std::vector<std::string>> addresses) {
        loop->Post([this, i, addresses = std::move(addresses)] { Answered(names_[i], addresses); });
      });
    }
    lost_ = false;
  }

  Duration Pause(const Name& name) const {
    const bool soon = lost_ || name.addresses.empty();
    return soon ? std::min(options_.at_least, options_.interval) : options_.interval;
  }

  void Answered(Name& name, const StatusOr<std::vector<std::string>>& addresses) {
    name.asking = false;
    const Status trouble = addresses.ok() && addresses->empty() ? NotFound("no address") : addresses.status();
    if (StatusMessage(trouble) != StatusMessage(name.trouble)) {
      if (!trouble.ok())
        LogWarning(what_ + " workers at " + name.seed.text + ": " + StatusMessage(trouble) + "; its members stay");
      name.trouble = trouble;
    }
    if (!trouble.ok()) return;
    name.addresses.clear();
    for (const std::string& host : *addresses) name.addresses.push_back(JoinHostPort(host, name.seed.port));
    wake_.Set();
  }

  void Apply() {
    std::vector<std::string> resolved;
    for (const Name& name : names_)
      resolved.insert(resolved.end(), name.addresses.begin(), name.addresses.end());
    std::vector<MemberState> states;
    for (Member& member : members_) {
      const bool usable = member.worker->health().ok();
      lost_ |= member.was_usable && !usable;
      member.was_usable = usable;
      states.push_back({member.address, member.listed, member.draining, pool_->Busy(member.id), usable});
    }
    MemberPlan plan = PlanMembers(states, resolved);
    for (const size_t i : plan.drain) Drain(members_[i]);
    for (const size_t i : plan.restore)
      if (!Restore(members_[i]) && !states[i].busy) plan.remove.push_back(i);  // and comes as a new one
    std::sort(plan.remove.begin(), plan.remove.end(), std::greater<>());
    for (const size_t i : plan.remove) Remove(i);
    for (const std::string& address : plan.add) Add(address, false);
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
  Resolver* const resolver_;
  WorkerPool<Worker>* const pool_;
  const Make make_;
  const MembershipOptions options_;
  std::vector<std::string> listed_;
  std::vector<Name> names_;
  std::vector<Member> members_;
  rpc::Event wake_;
  bool lost_ = false;  // a member has gone since the last question
};

}  // namespace cachalot
