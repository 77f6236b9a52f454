#include "common/moe/connect_experts.h"

#include <algorithm>
#include <optional>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/cluster/compat.h"
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

void Ask(rpc::Loop* loop, const std::shared_ptr<Peer>& peer) {
  if (peer->asking) return;
  peer->answer.reset();
  peer->asking = true;
  peer->asked = loop->Now();
  if (loop->Spawn(AskOnLoop(loop, peer), "describe experts")) return;
  peer->asking = false;
  peer->answer = Unavailable("the loop " + loop->name() + " has stopped");
}

StatusOr<ShardInfo> CheckPeer(const Peer& peer, const v1::Description& description,
                              const v1::Compat& compat) {
  if (description.role() != v1::ROLE_EXPERT)
    return FailedPrecondition(peer.address + " is no expert service but " +
                              v1::Role_Name(description.role()));
  RETURN_IF_ERROR(CheckCompat(compat, description.compat(), "expert service " + peer.address));
  return ShardInfo{peer.address,
                   description.epoch(),
                   static_cast<int>(description.shard()),
                   static_cast<int>(description.shards()),
                   static_cast<int>(description.expert_begin()),
                   static_cast<int>(description.expert_end())};
}

class GrpcChannelFactory final : public ChannelFactory {
 public:
  GrpcChannelFactory(rpc::Loop* loop, v1::Compat compat, ShardMap map,
                     std::vector<std::shared_ptr<Peer>> peers)
      : loop_(loop), compat_(std::move(compat)), map_(std::move(map)) {
    for (int s = 0; s < map_.shards(); ++s)
      for (const auto& peer : peers)
        if (peer->address == map_[s].address) peers_.push_back(peer);
  }

  StatusOr<std::unique_ptr<FrameChannel>> Connect(int shard, TimePoint deadline) override {
    const std::shared_ptr<Peer>& peer = peers_[shard];
    // The result of an attempt that has ended since the last Connect counts; what it found may have gone
    // since, but then the stream says so.
    if (!peer->answer || !peer->answer->ok()) Ask(loop_, peer);
    loop_->PollOnce(TimePoint::min());
    while (!peer->answer && !peer->Refused() && loop_->Now() < deadline)
      loop_->PollOnce(std::min(deadline, loop_->Now() + kLookAgain));
    if (!peer->answer)
      return Unavailable(peer->Refused() ? "no connection; trying again" : "no answer to Describe yet");
    const StatusOr<v1::Description> answer = *std::exchange(peer->answer, std::nullopt);
    if (!answer.ok()) return answer.status();
    ASSIGN_OR_RETURN(const ShardInfo info, CheckPeer(*peer, *answer, compat_));
    RETURN_IF_ERROR(map_.CheckSame(info));
    if (info.epoch != map_[shard].epoch) {
      LogInfo("expert " + map_.Name(shard) + " has restarted: epoch " + HexId(info.epoch) + " after " +
              HexId(map_[shard].epoch));
      map_.SetEpoch(shard, info.epoch);
    }
    return OpenGrpcChannel(loop_, peer->channel, kExpertDispatchMethod,
                           {.peer = peer->address, .metadata = {{kExpertEpochKey, HexId(info.epoch)}}});
  }

 private:
  rpc::Loop* const loop_;
  const v1::Compat compat_;
  ShardMap map_;
  std::vector<std::shared_ptr<Peer>> peers_;  // by shard
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
      return DeadlineExceeded("after " + std::to_string(Seconds(now - begin)) +
                              " s there is still no answer from expert service " + Missing(peers));
    if (now >= next_log) {
      LogInfo("waiting for expert service " + Missing(peers));
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
  for (const std::string& address : addresses) {
    for (const auto& peer : peers)
      if (peer->address == address)
        return FailedPrecondition("expert service " + address + " is given twice");
    peers.push_back(std::make_shared<Peer>(address));
  }
  RETURN_IF_ERROR(WaitForAnswers(peers, loop, options));
  std::vector<ShardInfo> infos;
  for (const auto& peer : peers) {
    ASSIGN_OR_RETURN(ShardInfo info, CheckPeer(*peer, **peer->answer, compat));
    infos.push_back(std::move(info));
  }
  ASSIGN_OR_RETURN(ShardMap map,
                   ShardMap::Make(std::move(infos), experts, static_cast<int>(compat.reduction_groups())));
  static const SteadyClock clock;
  auto factory = std::make_unique<GrpcChannelFactory>(loop, compat, map, peers);
  auto backend = std::make_unique<RemoteExperts>(std::move(map), std::move(factory),
                                                 std::make_shared<LoopProgress>(loop), &clock, options.calls);
  RETURN_IF_ERROR(backend->ConnectAll(loop->Now() + kDescribeTimeout));
  LogInfo("connected to " + std::to_string(addresses.size()) + " expert services");
  return backend;
}

}  // namespace cachalot
