#pragma once
// Only for the .cc files of this folder: what keeps prometheus-cpp behind MetricsRegistry.

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/metrics/registry.h"
#include "prometheus/collectable.h"
#include "prometheus/registry.h"

namespace cachalot {

struct MetricsRegistry::Impl final : prometheus::Collectable {
  std::vector<prometheus::MetricFamily> Collect() const override;

  prometheus::Registry registry;

  mutable std::mutex collectors_mutex;
  std::map<int, std::function<void()>> collectors;
  int next_collector = 1;

  std::mutex metrics_mutex;
  std::map<std::string, char> kinds;  // name -> c, g or h
  // Name and labels -> the metric. One of the three is set.
  struct Metric {
    std::unique_ptr<Counter> counter;
    std::unique_ptr<Gauge> gauge;
    std::unique_ptr<Histogram> histogram;
  };
  std::map<std::pair<std::string, MetricLabels>, Metric> metrics;

  Metric& Slot(const std::string& name, char kind, const MetricLabels& labels);
};

}  // namespace cachalot
