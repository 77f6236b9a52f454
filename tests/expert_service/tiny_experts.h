#pragma once
// Small random experts, a cluster of expert steps in this process, and a progress that runs them: everything
// on one thread and by a clock that only the tests move.

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/kernels/kernels.h"
#include "common/moe/local_experts.h"
#include "common/moe/remote_experts.h"
#include "common/transport/fault_proxy.h"
#include "common/transport/inproc_transport.h"
#include "expert_service/expert_step.h"

namespace cachalot::testing {

inline constexpr int kGroups = 8;

/// fp32 experts.
class TinyExperts {
 public:
  static constexpr int kLayers = 2, kExperts = 16, kTopK = 4;
  static constexpr int64_t kHidden = 64, kWidth = 48;
  static constexpr float kLimit = 10.f;

  explicit TinyExperts(uint64_t seed = 1) : random_(seed), table_(kLayers) {
    for (auto& layer : table_) {
      for (int e = 0; e < kExperts; ++e)
        layer.push_back({Matrix(kWidth, kHidden), Matrix(kWidth, kHidden), Matrix(kHidden, kWidth)});
    }
  }

  const std::vector<std::vector<ExpertMatrices>>& table() const { return table_; }

 private:
  MatrixView Matrix(int64_t rows, int64_t cols) {
    auto values = std::make_unique<float[]>(rows * cols);
    for (int64_t i = 0; i < rows * cols; ++i)
      values[i] = static_cast<float>(static_cast<int64_t>(random_() % 2001) - 1000) / 3000;
    MatrixView view{DType::kF32, values.get(), rows, cols};
    memory_.push_back(std::move(values));
    return view;
  }

  std::mt19937_64 random_;
  std::vector<std::unique_ptr<float[]>> memory_;
  std::vector<std::vector<ExpertMatrices>> table_;
};

/// One layer's input for `rows` tokens, with its plan and room for the partials.
struct TinyCall {
  TinyCall(int64_t rows, int layer, uint64_t seed) : layer(layer), x(rows * TinyExperts::kHidden) {
    std::mt19937_64 random(seed);
    for (float& value : x) value = static_cast<float>(static_cast<int64_t>(random() % 2001) - 1000) / 500;
    std::vector<int32_t> ids;
    std::vector<float> weights;
    for (int64_t r = 0; r < rows; ++r) {
      std::set<int32_t> chosen;
      while (chosen.size() < TinyExperts::kTopK)
        chosen.insert(static_cast<int32_t>(random() % TinyExperts::kExperts));
      ids.insert(ids.end(), chosen.begin(), chosen.end());
      for (int k = 0; k < TinyExperts::kTopK; ++k)
        weights.push_back(static_cast<float>(random() % 1000) / 1000);
    }
    plan.Build(ids, weights, TinyExperts::kTopK, GroupRanges::Make(TinyExperts::kExperts, kGroups));
    partials.assign(plan.slots() * TinyExperts::kHidden, -1e30f);
  }

  ExpertCall call() { return {layer, plan.rows(), TinyExperts::kHidden, x.data(), &plan, partials.data()}; }
  /// Runs it; the partials, or nothing on an error.
  StatusOr<std::vector<float>> Run(ExpertBackend& backend) {
    partials.assign(partials.size(), -1e30f);
    RETURN_IF_ERROR(backend.Begin(call()));
    RETURN_IF_ERROR(backend.Wait());
    return partials;
  }

  int layer;
  std::vector<float> x;
  DispatchPlan plan;
  std::vector<float> partials;
};

/// Expert steps by shard, which can be killed and started, and channels to them with faults.
class StepCluster {
 public:
  StepCluster(std::vector<std::vector<ExpertMatrices>> table, int64_t hidden, float limit, int shards,
              const kernels::KernelTable& kernels = kernels::RefKernels())
      : table_(std::move(table)),
        hidden_(hidden),
        limit_(limit),
        kernels_(kernels),
        threads_(1),
        steps_(shards),
        plans_(shards) {
    for (int s = 0; s < shards; ++s) Start(s);
  }

  int shards() const { return static_cast<int>(steps_.size()); }
  int experts() const { return static_cast<int>(table_[0].size()); }
  ShardInfo Info(int shard) const {
    return {"step" + std::to_string(shard),    1, shard, shards(), experts() * shard / shards(),
            experts() * (shard + 1) / shards()};
  }

  void Start(int shard) {
    // Only the shard's own experts, so that one of another shard cannot be computed by mistake.
    auto layers = std::make_shared<std::vector<std::vector<ExpertMatrices>>>(table_);
    const ShardInfo info = Info(shard);
    for (auto& layer : *layers)
      for (int e = 0; e < experts(); ++e)
        if (e < info.expert_begin || e >= info.expert_end) layer[e] = {};
    const ExpertCallLimits limits{static_cast<int>(table_.size()), hidden_, info.expert_begin,
                                  info.expert_end, 1024};
    steps_[shard] = std::make_unique<ExpertStep>(
        [layers](int layer) { return std::span<const ExpertMatrices>((*layers)[layer]); }, limits,
        ExpertFfn(kernels_, threads_, limit_), options, &clock, observer);
  }
  void Kill(int shard) { steps_[shard].reset(); }
  ExpertStep& step(int shard) { return *steps_[shard]; }

  /// Faults of the next channel to `shard`.
  void SetFaults(int shard, FaultPlan plan) { plans_[shard] = std::move(plan); }

  /// Runs everything that can run without the clock. False when there was nothing.
  bool RunSteps() {
    bool worked = false;
    for (auto& step : steps_) {
      if (!step || paused || hung.contains(step.get())) continue;
      step->Collect();
      while (step->RunBatch()) worked = true;
    }
    return worked;
  }

  StatusOr<std::unique_ptr<FrameChannel>> Connect(int shard) {
    if (!steps_[shard]) return Unavailable("connection refused");
    auto [ours, theirs] =
        MakeInprocPair(std::make_shared<InprocProgress>(), std::make_shared<InprocProgress>());
    steps_[shard]->Add(std::move(theirs));
    FaultPlan plan = std::exchange(plans_[shard], nullptr);
    if (!plan) return std::move(ours);
    return std::unique_ptr<FrameChannel>(
        std::make_unique<FaultProxy>(std::move(ours), std::move(plan), &clock));
  }

  std::unique_ptr<RemoteExperts> NewBackend(const RemoteExpertsOptions& remote_options = {}) {
    std::vector<ShardInfo> infos;
    for (int s = 0; s < shards(); ++s) infos.push_back(Info(s));
    return std::make_unique<RemoteExperts>(*ShardMap::Make(infos, experts(), kGroups),
                                           std::make_unique<Factory>(this),
                                           std::make_shared<StepProgress>(this), &clock, remote_options);
  }

  FakeClock clock;
  bool paused = false;               // the steps do nothing, but their services say that they live
  std::set<const ExpertStep*> hung;  // nor do these
  std::set<int> given_up;            // shards, for their silence
  std::pair<TimePoint, std::function<void()>> at;  // what happens then
  ExpertStepOptions options;  // of steps that are started from now on
  ExpertStepObserver* observer = nullptr;

 private:
  struct Factory final : ChannelFactory {
    explicit Factory(StepCluster* c) : cluster(c) {}
    StatusOr<std::unique_ptr<FrameChannel>> Connect(int shard, TimePoint) override {
      return cluster->Connect(shard);
    }
    TimePoint Heard(int shard, bool ask) override {
      const ExpertStep* step = cluster->steps_[shard].get();
      if (ask && step && !cluster->hung.contains(step)) heard[shard] = cluster->clock.Now();
      return heard[shard];
    }
    void Silent(int shard) override { cluster->given_up.insert(shard); }
    StepCluster* cluster;
    std::map<int, TimePoint> heard;
  };
  /// Time passes only when there is nothing to do.
  struct StepProgress final : Progress {
    explicit StepProgress(StepCluster* c) : cluster(c) {}
    void WaitUntil(TimePoint deadline) override {
      if (deadline == TimePoint::min() || cluster->RunSteps()) return;
      const Duration left = deadline - cluster->clock.Now();
      if (left > Duration::zero()) cluster->clock.Advance(left);
      if (cluster->at.second && cluster->clock.Now() >= cluster->at.first)
        std::exchange(cluster->at.second, nullptr)();
    }
    StepCluster* cluster;
  };

  const std::vector<std::vector<ExpertMatrices>> table_;
  const int64_t hidden_;
  const float limit_;
  const kernels::KernelTable& kernels_;
  ThreadPool threads_;
  std::vector<std::unique_ptr<ExpertStep>> steps_;
  std::vector<FaultPlan> plans_;
};

}  // namespace cachalot::testing
