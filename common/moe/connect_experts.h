#pragma once
// Finds the expert services by gRPC and gives the back end over them. For workers' mains:
//
//   // on the step thread (or before it starts), with the loop that this thread drives
//   ASSIGN_OR_RETURN(std::unique_ptr<ExpertBackend> experts,
//                    ConnectExperts(config.experts, step_loop, compat, model_config.n_routed_experts, {}));

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cachalot/v1/cluster.pb.h"
#include "common/base/status.h"
#include "common/base/time.h"
#include "common/discovery/name_watch.h"
#include "common/moe/remote_experts.h"
#include "common/rpc/loop.h"
#include "common/transport/grpc_transport.h"

namespace cachalot {

struct ConnectExpertsOptions {
  Duration wait =
      std::chrono::seconds(8);  // for all services to answer; opening the streams may take 2 s more
  Duration log_every = std::chrono::seconds(2);  // says who is missing
  std::function<bool()> give_up;                 // asked while waiting: true ends it with CANCELLED
  RemoteExpertsOptions calls;
  /// The most token rows that a step of this worker has, and the flag that says so; 0: not known. A service
  /// that takes less in a call does not fit.
  int64_t step_rows = 0;
  std::string step_rows_flag;
  /// Of the model, for what the rows of a step make in bytes; 0: not known. A service does not fit either
  /// when the longest call or reply is no frame.
  int64_t hidden = 0;
  int64_t experts_per_row = 0;
  int64_t max_frame_bytes = kMaxGrpcFrameBytes;
  /// For names among the addresses: who resolves them (null: c-ares with `dns_servers`, as AresOptions has it).
  std::shared_ptr<Resolver> resolver;
  std::string dns_servers;
  NameWatchOptions names;
};

/// Waits until every service answers Describe, checks that they fit (CheckCompat, rows and bytes of a
/// call) and cover every expert exactly once, and opens a stream to each. `addresses` as for CreateChannel,
/// in any order. DEADLINE_EXCEEDED names the silent ones, FAILED_PRECONDITION what does not fit.
///
/// With dns:NAME:PORT among them (Seed) every address of the name may be a service: those that do not fit are
/// passed over, one of several with the same shard is taken, and it waits until all shards are there:
/// DEADLINE_EXCEEDED names those that are missing. A shard that is lost later is looked for at the name's
/// addresses of then, too.
///
/// The calling thread drives `loop` (PollOnce) here and in every call of the back end, never from inside a
/// task of the loop; a loop of a Server must have been started. The back end must go before the loop does.
StatusOr<std::unique_ptr<RemoteExperts>> ConnectExperts(const std::vector<std::string>& addresses,
                                                        rpc::Loop* loop, const v1::Compat& compat,
                                                        int experts,
                                                        const ConnectExpertsOptions& options = {});

}  // namespace cachalot
