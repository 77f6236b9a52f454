#include "common/moe/connect_experts.h"

#include <algorithm>
#include <optional>
#include <span>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/base/seconds_text.h"
#include "common/cluster/compat.h"
#include "common/discovery/ares_resolver.h"
#include "common/kernels/kernels.h"
#include "common/moe/expert_frame.h"
#include "common/moe/expert_method.h"
#include "common/rpc/client.h"
#include "common/transport/grpc_transport.h"

namespace cachalot {
namespace {

constexpr Duration kDescribeTimeout = std::chrono::seconds(2);
constexpr Duration kAskAgain = std::chrono::milliseconds(100);  // after an answer that was an error
constexpr Duration kLookAgain = std::chrono::milliseconds(5);   // a refused connection wakes no loop

/// One expert service. The attempt to describe it may outlive whoever asked.
struct Peer {
  explicit Peer(std::string a) : address(std::move(a)) { Reconnect(); }

  void Reconnect() {
    probing = false;  // one under way is about the connection before
    rpc::ChannelOptions options;
    options.max_message_bytes = kMaxGrpcFrameBytes;
    options.max_backoff_ms = 200;  // a restarted service is to be found again within a second
    channel = rpc::CreateChannel(address, options);
    stub = v1::Cluster::NewStub(channel);
  }

  bool Connected() const { return channel->GetState(false) == GRPC_CHANNEL_READY; }
  /// The last attempt to connect has failed; another follows soon.
  bool Refused() const { return channel->GetState(false) == GRPC_CHANNEL_TRANSIENT_FAILURE; }

  const std::string address;
  std::shared_ptr<grpc::Channel> channel;
  std::shared_ptr<v1::Cluster::Stub> stub;
  bool asking = false;
  TimePoint asked{};
  std::optional<StatusOr<v1::Description>> answer;

  bool probing = false;
  TimePoint heard{};  // the last answer to a probe
};

/// Waits for the connection: a call that fails at once in a disconnected channel would leave nobody to poll
/// the socket that reconnects, and under GRPC_POLL_STRATEGY=poll no other thread does.
rpc::Task<void> AskOnLoop(rpc::Loop* loop, std::shared_ptr<Peer> peer) {
  const std::shared_ptr<v1::Cluster::Stub> stub = peer->stub;
  auto call =
      rpc::UnaryCall(loop, stub.get(), &v1::Cluster::Stub::PrepareAsyncDescribe, v1::DescribeRequest(),
                     {.deadline = loop->Now() + kDescribeTimeout, .wait_for_ready = true});
  StatusOr<v1::Description> answer = co_await std::move(call);
  // A connection to a host that vanished looks alive for minutes: the next attempt makes a new one.
  if (answer.status().code() == StatusCode::kDeadlineExceeded && peer->Connected()) peer->Reconnect();
  peer->answer = std::move(answer);
  peer->asking = false;
}

/// Whether it lives. The answer is no description to go by later.
rpc::Task<void> ProbeOnLoop(rpc::Loop* loop, std::shared_ptr<Peer> peer) {
  const std::shared_ptr<v1::Cluster::Stub> stub = peer->stub;
  auto call = rpc::UnaryCall(loop, stub.get(), &v1::Cluster::Stub::PrepareAsyncDescribe,
                             v1::DescribeRequest(), {.deadline = loop->Now() + kDescribeTimeout});
  const StatusOr<v1::Description> answer = co_await std::move(call);
  if (answer.ok()) peer->heard = loop->Now();
  if (stub == peer->stub) peer->probing = false;
}

void Ask(rpc::Loop* loop, const std::shared_ptr<Peer>& peer) {
  if (peer->asking) return;
  peer->answer.reset();
  peer->asking = true;
  peer->asked = loop->Now();
  if (loop->Spawn(AskOnLoop(loop, peer), "describe experts")) return;
  peer->asking = false;
  peer->answer = Unavailable("the loop " + loop->name() + " has stopped");
}

/// What a worker wants of its expert services.
struct Needs {
  v1::Compat compat;
  int64_t rows = 0;  // of a call, at most
  std::string rows_flag;
  int64_t hidden = 0, experts_per_row = 0;
  int64_t max_frame_bytes = 0;
};

/// A frame that is too long would fail in the middle of a request, with all requests that share the step.
Status CheckFrames(const ShardInfo& info, const Needs& needs) {
  if (needs.rows == 0 || needs.hidden == 0) return OkStatus();
  const bool bf16 = needs.compat.mode() == kernels::ModeName(kernels::NumericMode::kBf16);
  const ExpertFrameShape shape{
      .hidden = needs.hidden,
      .experts_per_row = needs.experts_per_row,
      .shard_experts = int64_t{info.expert_end} - info.expert_begin,
      .shard_groups = static_cast<int64_t>(needs.compat.reduction_groups()) / std::max(info.shards, 1),
      .wire_type = bf16 ? ExpertWireType::kBf16 : ExpertWireType::kF32};
  const auto longest = [&](int64_t rows) {
    const ExpertFrameBytes bytes = LongestExpertFrames(shape, rows);
    return std::max(bytes.call, bytes.reply);
  };
  const int64_t bytes = longest(needs.rows);
  if (bytes <= needs.max_frame_bytes) return OkStatus();
  const int64_t none = longest(0), fit = (needs.max_frame_bytes - none) / (longest(1) - none);
  const bool call = bytes == LongestExpertFrames(shape, needs.rows).call;
  return FailedPrecondition("expert service " + info.address + ": a step here may have " +
                            std::to_string(needs.rows) + " rows (" + needs.rows_flag + "), whose " +
                            (call ? "call" : "reply") + " may have " + std::to_string(bytes) +
                            " bytes; a frame has at most " + std::to_string(needs.max_frame_bytes) +
                            ", enough for " + std::to_string(fit) + " rows: lower " + needs.rows_flag);
}

StatusOr<ShardInfo> CheckPeer(const Peer& peer, const v1::Description& description, const Needs& needs) {
  if (description.role() != v1::ROLE_EXPERT)
    return FailedPrecondition(peer.address + " is no expert service but " +
                              v1::Role_Name(description.role()));
  RETURN_IF_ERROR(CheckCompat(needs.compat, description.compat(), "expert service " + peer.address));
  const int64_t takes = description.max_call_rows();
  if (takes != 0 && takes < needs.rows)
    return FailedPrecondition("expert service " + peer.address + " takes at most " + std::to_string(takes) +
                              " rows in a call (its --max-call-rows), a step here may have " +
                              std::to_string(needs.rows) + " (" + needs.rows_flag +
                              "): raise the one or lower the other");
  const ShardInfo info{peer.address,
                       description.epoch(),
                       static_cast<int>(description.shard()),
                       static_cast<int>(description.shards()),
                       static_cast<int>(description.expert_begin()),
                       static_cast<int>(description.expert_end())};
  RETURN_IF_ERROR(CheckFrames(info, needs));
  return info;
}

/// The services by name: who is there now, whatever shard it has.
class NamedPeers {
 public:
  NamedPeers(rpc::Loop* loop, std::vector<Seed> names, std::vector<std::shared_ptr<Peer>> listed,
             std::shared_ptr<Resolver> resolver, const NameWatchOptions& options)
      : loop_(loop),
        resolver_(std::move(resolver)),
        watch_("expert services", std::move(names), resolver_.get(), options),
        listed_(listed.size()),
        peers_(std::move(listed)) {}

  const std::vector<std::shared_ptr<Peer>>& peers() const { return peers_; }
  std::string Trouble() const { return watch_.Trouble(); }

  /// Asks DNS when that is due and takes what it has said. Peers that have left DNS are forgotten, but not
  /// those in `used`.
  void Update(bool soon, std::span<const std::shared_ptr<Peer>> used = {}) {
    watch_.Ask(loop_->Now(), soon);
    const std::vector<std::string> addresses = watch_.Addresses();
    for (size_t i = peers_.size(); i-- > listed_;) {
      const auto& peer = peers_[i];
      const bool stays = std::find(addresses.begin(), addresses.end(), peer->address) != addresses.end() ||
                         std::find(used.begin(), used.end(), peer) != used.end();
      if (!stays) peers_.erase(peers_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    for (const std::string& address : addresses) {
      const bool known = std::any_of(peers_.begin(), peers_.end(),
                                     [&](const auto& peer) { return peer->address == address; });
      if (!known) peers_.push_back(std::make_shared<Peer>(address));
    }
  }

  /// Describes `peer` unless that was done just now, for an answer that was no error within `lasts`; true
  /// while an answer may come.
  bool AskFresh(const std::shared_ptr<Peer>& peer, Duration lasts = kDescribeTimeout) {
    if (!peer->answer || !peer->answer->ok()) lasts = kAskAgain;
    if (!peer->asking && (!peer->answer || loop_->Now() >= peer->asked + lasts)) Ask(loop_, peer);
    return peer->asking;
  }

 private:
  rpc::Loop* const loop_;
  const std::shared_ptr<Resolver> resolver_;
  NameWatch watch_;
  const size_t listed_;  // so many come first, and stay
  std::vector<std::shared_ptr<Peer>> peers_;
};

class GrpcChannelFactory final : public ChannelFactory {
 public:
  GrpcChannelFactory(rpc::Loop* loop, Needs needs, ShardMap map,
                     const std::vector<std::shared_ptr<Peer>>& peers, std::unique_ptr<NamedPeers> named)
      : loop_(loop), needs_(std::move(needs)), map_(std::move(map)), named_(std::move(named)) {
    for (int s = 0; s < map_.shards(); ++s)
      for (const auto& peer : peers)
        if (peer->address == map_[s].address) peers_.push_back(peer);
  }

  StatusOr<std::unique_ptr<FrameChannel>> Connect(int shard, TimePoint deadline) override {
    ASSIGN_OR_RETURN(const v1::Description description,
                     named_ ? FindByName(shard, deadline) : AskFixed(shard, deadline));
    const Peer& peer = *peers_[shard];
    ASSIGN_OR_RETURN(const ShardInfo info, CheckPeer(peer, description, needs_));
    // A name's shards may have exchanged their addresses; FindByName has compared the shard.
    if (!named_) RETURN_IF_ERROR(map_.CheckSame(info));
    if (info.epoch != map_[shard].epoch) {
      LogInfo("expert " + map_.Name(shard) + " has restarted: epoch " + HexId(info.epoch) + " after " +
              HexId(map_[shard].epoch));
      map_.SetEpoch(shard, info.epoch);
    }
    return OpenGrpcChannel(loop_, peer.channel, kExpertDispatchMethod,
                           {.peer = peer.address,
                            .max_frame_bytes = static_cast<size_t>(needs_.max_frame_bytes),
                            .metadata = {{kExpertEpochKey, HexId(info.epoch)}}});
  }

  const ShardInfo* Current(int shard) const override { return named_ ? &map_[shard] : nullptr; }

  TimePoint Heard(int shard, bool ask) override {
    const std::shared_ptr<Peer>& peer = peers_[shard];
    if (ask && !peer->probing) peer->probing = loop_->Spawn(ProbeOnLoop(loop_, peer), "probe experts");
    return peer->heard;
  }

  void Silent(int shard) override { peers_[shard]->Reconnect(); }

 private:
  /// The result of an attempt that has ended since the last Connect counts, here and in FindByName; what it
  /// found may have gone since, but then the stream says so.
  StatusOr<v1::Description> AskFixed(int shard, TimePoint deadline) {
    const std::shared_ptr<Peer>& peer = peers_[shard];
    if (!peer->answer || !peer->answer->ok()) Ask(loop_, peer);
    loop_->PollOnce(TimePoint::min());
    while (!peer->answer && !peer->Refused() && loop_->Now() < deadline)
      loop_->PollOnce(std::min(deadline, loop_->Now() + kLookAgain));
    if (!peer->answer) return NoAnswer(*peer);
    return *std::exchange(peer->answer, std::nullopt);
  }

  StatusOr<v1::Description> FindByName(int shard, TimePoint deadline) {
    loop_->PollOnce(TimePoint::min());
    for (;;) {
      const bool asking = LookForService(shard);
      Peer& peer = *peers_[shard];
      if (HasShard(shard, peer)) return *std::exchange(peer.answer, std::nullopt);
      if (!asking || loop_->Now() >= deadline) break;
      loop_->PollOnce(std::min(deadline, loop_->Now() + kLookAgain));
    }
    const Peer& peer = *peers_[shard];
    if (!peer.answer) return NoAnswer(peer);
    // The address may have gone to a pod of another kind: no reason to give the shard up. The answer stays:
    // it may be what another lost shard looks for.
    const Status unfit = peer.answer->ok() ? Fits(shard, peer, **peer.answer) : peer.answer->status();
    return Unavailable(StatusMessage(unfit) + "; looking for another");
  }

  static Status NoAnswer(const Peer& peer) {
    return Unavailable(peer.Refused() ? "no connection; trying again" : "no answer to Describe yet");
  }

  Status Fits(int shard, const Peer& peer, const v1::Description& description) const {
    ASSIGN_OR_RETURN(const ShardInfo info, CheckPeer(peer, description, needs_));
    return map_.CheckStandIn(shard, info);
  }
  bool HasShard(int shard, const Peer& peer) const {
    return peer.answer && peer.answer->ok() && Fits(shard, peer, **peer.answer).ok();
  }

  /// Asks the lost shard's service and, until it has said that it has the shard, the others that its name
  /// leads to; puts one that has the shard in its place. Those of other shards are asked as well: they may
  /// have exchanged their addresses, and a connection to a host that vanished looks alive. True while
  /// somebody may still answer.
  bool LookForService(int shard) {
    std::shared_ptr<Peer>& current = peers_[shard];
    const bool unfit = current->answer && !HasShard(shard, *current);
    bool asking = named_->AskFresh(current, unfit ? kAskAgain : kDescribeTimeout) && !current->Refused();
    if (HasShard(shard, *current)) return false;
    named_->Update(/*soon=*/true, peers_);
    for (const auto& peer : named_->peers()) {
      if (peer == current) continue;
      if (named_->AskFresh(peer)) {
        asking |= !peer->Refused();
        continue;
      }
      if (!HasShard(shard, *peer)) continue;
      LogInfo("expert " + map_.Name(shard) + " is replaced by " + peer->address);
      map_.Replace(shard, *CheckPeer(*peer, **peer->answer, needs_));
      current = peer;
      return false;
    }
    return asking;
  }

  rpc::Loop* const loop_;
  const Needs needs_;
  ShardMap map_;
  std::vector<std::shared_ptr<Peer>> peers_;  // by shard
  const std::unique_ptr<NamedPeers> named_;   // null: all addresses are fixed
};

/// Who has not answered yet and why, or "".
std::string Missing(const std::vector<std::shared_ptr<Peer>>& peers) {
  std::string missing;
  for (const auto& peer : peers) {
    if (peer->answer && peer->answer->ok()) continue;
    missing += (missing.empty() ? "" : ", ") + peer->address;
    missing += peer->answer      ? " (" + StatusMessage(peer->answer->status()) + ")"
               : peer->Refused() ? " (no connection)"
                                 : " (no answer)";
  }
  return missing;
}

Status WaitForAnswers(const std::vector<std::shared_ptr<Peer>>& peers, rpc::Loop* loop,
                      const ConnectExpertsOptions& options) {
  const TimePoint begin = loop->Now(), deadline = begin + options.wait;
  TimePoint next_log = begin + options.log_every;
  for (const auto& peer : peers) Ask(loop, peer);
  for (;;) {
    const TimePoint now = loop->Now();
    bool all = true;
    for (const auto& peer : peers) {
      if (peer->answer && peer->answer->ok()) continue;
      all = false;
      if (now < peer->asked + kAskAgain || !peer->answer) continue;
      Ask(loop, peer);
    }
    if (all) return OkStatus();
    if (options.give_up && options.give_up()) return Cancelled("waiting for expert services was given up");
    if (now >= deadline)
      return DeadlineExceeded("after " + SecondsText(options.wait) +
                              " there is still no answer from expert service " + Missing(peers));
    if (now >= next_log) {
      LogInfo("waiting for expert service " + Missing(peers));
      next_log = now + options.log_every;
    }
    loop->PollOnce(std::min(deadline, now + kAskAgain / 2));
  }
}

/// Every one of `peers` must answer, fit, and have a shard of its own.
StatusOr<ShardMap> WaitForListed(const std::vector<std::shared_ptr<Peer>>& peers, rpc::Loop* loop,
                                 const Needs& needs, int experts, const ConnectExpertsOptions& options) {
  RETURN_IF_ERROR(WaitForAnswers(peers, loop, options));
  std::vector<ShardInfo> infos;
  for (const auto& peer : peers) {
    ASSIGN_OR_RETURN(ShardInfo info, CheckPeer(*peer, **peer->answer, needs));
    infos.push_back(std::move(info));
  }
  return ShardMap::Make(std::move(infos), experts, static_cast<int>(needs.compat.reduction_groups()));
}

/// What keeps `peers` from covering all shards, after why they do not.
std::string WhyIncomplete(const std::vector<std::shared_ptr<Peer>>& peers, const Status& incomplete,
                          const std::string& unfit, const std::string& names) {
  std::string why = StatusMessage(incomplete);
  const std::string silent = Missing(peers);
  for (const std::string& more : {unfit, silent.empty() ? "" : "no answer from " + silent, names})
    if (!more.empty()) why += "; " + more;
  return why;
}

/// Waits until the services that are listed or that names lead to have all shards between them.
StatusOr<ShardMap> WaitForShards(NamedPeers& named, rpc::Loop* loop, const Needs& needs, int experts,
                                 const ConnectExpertsOptions& options) {
  const TimePoint begin = loop->Now(), deadline = begin + options.wait;
  TimePoint next_log = begin + options.log_every;
  for (;;) {
    named.Update(/*soon=*/true);
    std::vector<ShardInfo> infos;
    std::string unfit;
    for (const auto& peer : named.peers()) {
      named.AskFresh(peer);
      if (!peer->answer || !peer->answer->ok()) continue;
      StatusOr<ShardInfo> info = CheckPeer(*peer, **peer->answer, needs);
      if (info.ok()) {
        infos.push_back(std::move(*info));
      } else {
        unfit += (unfit.empty() ? "" : "; ") + StatusMessage(info.status());
      }
    }
    StatusOr<ShardMap> map =
        ShardMap::Choose(infos, experts, static_cast<int>(needs.compat.reduction_groups()));
    if (map.ok()) return map;
    if (options.give_up && options.give_up()) return Cancelled("waiting for expert services was given up");
    const TimePoint now = loop->Now();
    const auto why = [&] { return WhyIncomplete(named.peers(), map.status(), unfit, named.Trouble()); };
    if (now >= deadline) return DeadlineExceeded("after " + SecondsText(options.wait) + ": " + why());
    if (now >= next_log) {
      LogInfo("waiting for expert services: " + why());
      next_log = now + options.log_every;
    }
    loop->PollOnce(std::min(deadline, now + kAskAgain / 2));
  }
}

}  // namespace

StatusOr<std::unique_ptr<RemoteExperts>> ConnectExperts(const std::vector<std::string>& addresses,
                                                        rpc::Loop* loop, const v1::Compat& compat,
                                                        int experts, const ConnectExpertsOptions& options) {
  std::vector<std::shared_ptr<Peer>> peers;
  std::vector<Seed> names;
  for (const std::string& address : addresses) {
    ASSIGN_OR_RETURN(Seed seed, ParseSeed(address));
    if (seed.dns()) {
      names.push_back(std::move(seed));
      continue;
    }
    for (const auto& peer : peers)
      if (peer->address == address)
        return FailedPrecondition("expert service " + address + " is given twice");
    peers.push_back(std::make_shared<Peer>(address));
  }
  std::unique_ptr<NamedPeers> named;
  if (!names.empty()) {
    std::shared_ptr<Resolver> resolver = options.resolver;
    if (!resolver) {
      ASSIGN_OR_RETURN(resolver, AresResolver::Make({.servers = options.dns_servers}));
    }
    named = std::make_unique<NamedPeers>(loop, std::move(names), peers, std::move(resolver), options.names);
  }
  const Needs needs{compat,         options.step_rows,       options.step_rows_flag,
                    options.hidden, options.experts_per_row, options.max_frame_bytes};
  ASSIGN_OR_RETURN(ShardMap map, named ? WaitForShards(*named, loop, needs, experts, options)
                                       : WaitForListed(peers, loop, needs, experts, options));
  if (named) peers = named->peers();
  const int shards = map.shards();
  static const SteadyClock clock;
  auto factory = std::make_unique<GrpcChannelFactory>(loop, needs, map, peers, std::move(named));
  auto backend = std::make_unique<RemoteExperts>(std::move(map), std::move(factory),
                                                 std::make_shared<LoopProgress>(loop), &clock, options.calls);
  RETURN_IF_ERROR(backend->ConnectAll(loop->Now() + kDescribeTimeout));
  LogInfo("connected to " + std::to_string(shards) + " expert services");
  return backend;
}

}  // namespace cachalot
