#pragma once
// Counters, gauges and histograms, exported in Prometheus' text format. A thin layer over prometheus-cpp: its
// headers and exceptions stay behind it.
//
// Make every metric at start-up and hold on to the reference: recording is then an atomic operation (a short
// lock for histograms), looking one up is not. References live as long as the registry.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace cachalot {

using MetricLabels = std::map<std::string, std::string>;

class Counter {
 public:
  virtual ~Counter() = default;
  /// `by` >= 0.
  virtual void Add(double by = 1) = 0;
  virtual double Value() const = 0;
};

class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
  virtual void Add(double by) = 0;
  virtual double Value() const = 0;
};

class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;
};

/// Upper bounds first, first*factor, ... (`count` of them). Seconds for latencies: {0.0001, 2, 18} reaches 13
/// s.
std::vector<double> ExponentialBuckets(double first, double factor, int count);

/// Thread-safe. A name or label that Prometheus does not allow, and one name with two kinds, are bugs: CHECK.
/// The same name and labels again give the same metric.
class MetricsRegistry {
 public:
  MetricsRegistry();
  ~MetricsRegistry();
  MetricsRegistry(const MetricsRegistry&) = delete;
  MetricsRegistry& operator=(const MetricsRegistry&) = delete;

  /// Names follow Prometheus: cachalot_<role>_<what>_<unit>, counters end in _total.
  Counter& AddCounter(const std::string& name, const std::string& help, const MetricLabels& labels = {});
  Gauge& AddGauge(const std::string& name, const std::string& help, const MetricLabels& labels = {});
  /// `buckets`: ascending upper bounds; +Inf is added.
  Histogram& AddHistogram(const std::string& name, const std::string& help,
                          const std::vector<double>& buckets, const MetricLabels& labels = {});

  /// Called before each scrape, on the exporter's thread: for gauges that are cheaper to compute then.
  /// Returns an id for RemoveCollector, which waits for a running scrape.
  int AddCollector(std::function<void()> refresh);
  void RemoveCollector(int id);

  /// Everything in Prometheus' text format.
  std::string Text() const;

 private:
  friend class MetricsServer;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace cachalot
