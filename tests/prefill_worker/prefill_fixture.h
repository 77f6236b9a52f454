#pragma once
// A prefill worker that serves over gRPC, with the test as its router and decode worker.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "cachalot/v1/prefill.grpc.pb.h"
#include "common/cluster/compat.h"
#include "common/metrics/registry.h"
#include "prefill_worker/prefill_server.h"
#include "tests/prefill_worker/fake_decode_worker.h"
#include "tests/prefill_worker/test_model.h"
#include "tests/support/patience.h"

namespace cachalot::testing {

/// Waits for another thread's progress; false when it does not come.
template <typename Condition>
bool Eventually(Condition condition) {
  const TimePoint end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

/// One Prefill call, as a router makes it.
class PrefillCaller {
 public:
  PrefillCaller(v1::Prefill::Stub* stub, const v1::PrefillRequest& request);
  ~PrefillCaller();

  /// The next event; nothing at the end of the stream.
  std::optional<v1::PrefillEvent> Next();
  /// The next event that is no Progress.
  std::optional<v1::PrefillEvent> NextNews();
  /// Reads the rest.
  Status Finish();
  void Cancel() { context_.TryCancel(); }

  int heartbeats = 0;  ///< Progress events that Next has returned

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::PrefillEvent>> reader_;
  std::optional<Status> status_;
};

class PrefillFixture : public ::testing::Test {
 protected:
  using Manner = FakeDecodeWorker::Manner;

  PrefillFixture();
  ~PrefillFixture() override;

  /// With `options_`; a test may set those first.
  void Serve();
  v1::PrefillRequest Request(const SequenceState& state);
  std::unique_ptr<PrefillCaller> Call(const SequenceState& state) { return Call(Request(state)); }
  std::unique_ptr<PrefillCaller> Call(const v1::PrefillRequest& request);
  v1::Description Describe();

  /// No job and no block is left, and the decode worker's streams have ended.
  bool EventuallyNothingIsLeft();
  /// One of the service's counters or gauges, from the exported text.
  double Metric(const std::string& name) const;

  TestModel m_;
  FakeDecodeWorker decode_;
  PrefillServerOptions options_;
  MetricsRegistry registry_;
  std::unique_ptr<PrefillServer> server_;
  std::unique_ptr<v1::Prefill::Stub> stub_;
  std::unique_ptr<v1::Cluster::Stub> cluster_stub_;
};

}  // namespace cachalot::testing
