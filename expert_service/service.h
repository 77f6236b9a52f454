#pragma once
// One expert service: its weights, its threads and its server. main.cc adds the process around it.

#include <memory>
#include <string>

#include "common/base/status.h"
#include "common/base/time.h"
#include "common/metrics/registry.h"

namespace cachalot {

struct ExpertServiceConfig {
  std::string listen = "127.0.0.1:0";
  std::string model;          // a checkpoint's directory
  std::string shard = "0/1";  // i/N
  std::string kernels = "auto";
  std::string mode = "exact";  // numeric mode, exact or bf16
  int threads = 0;             // of the step, itself included; 0: one a core
  int batch_wait_us = 50;
  int spin_us = 0;  // of the step thread before it sleeps; needs a core to itself
  int max_call_rows = 8192;
};

class ExpertService {
 public:
  /// Loads the shard and serves. `metrics` must outlive it.
  static StatusOr<std::unique_ptr<ExpertService>> Start(const ExpertServiceConfig& config,
                                                        MetricsRegistry* metrics);
  ~ExpertService();

  /// "host:port" as bound.
  const std::string& address() const;
  uint64_t epoch() const;

  /// Not ready any more; answers what has arrived, ends the callers' streams, stops the threads. `grace`
  /// bounds it. Idempotent; the destructor stops without grace.
  void Stop(Duration grace);

 private:
  struct Impl;
  explicit ExpertService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cachalot
