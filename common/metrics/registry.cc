#include "common/metrics/registry.h"

#include <exception>
#include <utility>

#include "common/base/check.h"
#include "common/metrics/registry_impl.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/text_serializer.h"

namespace cachalot {
namespace {

class CounterImpl final : public Counter {
 public:
  explicit CounterImpl(prometheus::Counter* counter) : counter_(counter) {}
  void Add(double by) override { counter_->Increment(by); }
  double Value() const override { return counter_->Value(); }

 private:
  prometheus::Counter* counter_;
};

class GaugeImpl final : public Gauge {
 public:
  explicit GaugeImpl(prometheus::Gauge* gauge) : gauge_(gauge) {}
  void Set(double value) override { gauge_->Set(value); }
  void Add(double by) override { gauge_->Increment(by); }
  double Value() const override { return gauge_->Value(); }

 private:
  prometheus::Gauge* gauge_;
};

class HistogramImpl final : public Histogram {
 public:
  explicit HistogramImpl(prometheus::Histogram* histogram) : histogram_(histogram) {}
  void Observe(double value) override { histogram_->Observe(value); }

 private:
  prometheus::Histogram* histogram_;
};

// prometheus-cpp throws at names that Prometheus does not allow, which is a bug of the caller.
template <typename Make>
auto OrDie(const std::string& name, Make make) -> decltype(make()) {
  try {
    return make();
  } catch (const std::exception& error) {
    CheckFailed(__FILE__, __LINE__, "a legal metric", name + ": " + error.what());
  }
}

}  // namespace

std::vector<double> ExponentialBuckets(double first, double factor, int count) {
  CHECK(first > 0 && factor > 1 && count >= 1);
  std::vector<double> bounds;
  for (double bound = first; count > 0; --count, bound *= factor) bounds.push_back(bound);
  return bounds;
}

std::vector<prometheus::MetricFamily> MetricsRegistry::Impl::Collect() const {
  std::lock_guard lock(collectors_mutex);
  for (const auto& [id, refresh] : collectors) refresh();
  return registry.Collect();
}

MetricsRegistry::Impl::Metric& MetricsRegistry::Impl::Slot(const std::string& name, char kind,
                                                           const MetricLabels& labels) {
  const auto [known, added] = kinds.emplace(name, kind);
  CHECK_MSG(known->second == kind, "metric " + name + " is of two kinds");
  return metrics[{name, labels}];
}

MetricsRegistry::MetricsRegistry() : impl_(std::make_shared<Impl>()) {}
MetricsRegistry::~MetricsRegistry() = default;

Counter& MetricsRegistry::AddCounter(const std::string& name, const std::string& help,
                                     const MetricLabels& labels) {
  std::lock_guard lock(impl_->metrics_mutex);
  auto& slot = impl_->Slot(name, 'c', labels).counter;
  if (!slot) {
    slot = std::make_unique<CounterImpl>(OrDie(name, [&] {
      return &prometheus::BuildCounter().Name(name).Help(help).Register(impl_->registry).Add(labels);
    }));
  }
  return *slot;
}

Gauge& MetricsRegistry::AddGauge(const std::string& name, const std::string& help,
                                 const MetricLabels& labels) {
  std::lock_guard lock(impl_->metrics_mutex);
  auto& slot = impl_->Slot(name, 'g', labels).gauge;
  if (!slot) {
    slot = std::make_unique<GaugeImpl>(OrDie(name, [&] {
      return &prometheus::BuildGauge().Name(name).Help(help).Register(impl_->registry).Add(labels);
    }));
  }
  return *slot;
}

Histogram& MetricsRegistry::AddHistogram(const std::string& name, const std::string& help,
                                         const std::vector<double>& buckets, const MetricLabels& labels) {
  std::lock_guard lock(impl_->metrics_mutex);
  auto& slot = impl_->Slot(name, 'h', labels).histogram;
  if (!slot) {
    slot = std::make_unique<HistogramImpl>(OrDie(name, [&] {
      return &prometheus::BuildHistogram()
                  .Name(name)
                  .Help(help)
                  .Register(impl_->registry)
                  .Add(labels, buckets);
    }));
  }
  return *slot;
}

int MetricsRegistry::AddCollector(std::function<void()> refresh) {
  std::lock_guard lock(impl_->collectors_mutex);
  const int id = impl_->next_collector++;
  impl_->collectors.emplace(id, std::move(refresh));
  return id;
}

void MetricsRegistry::RemoveCollector(int id) {
  std::lock_guard lock(impl_->collectors_mutex);
  impl_->collectors.erase(id);
}

std::string MetricsRegistry::Text() const { return prometheus::TextSerializer().Serialize(impl_->Collect()); }

}  // namespace cachalot
