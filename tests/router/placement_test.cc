#include "router/placement.h"

#include <gtest/gtest.h>

#include "router/worker_pool.h"

namespace cachalot {
namespace {

WorkerView Worker(const char* name, int64_t assigned = 0, int64_t reported = 0, int64_t free = 1000) {
  return {name, OkStatus(), false, assigned, reported, free, 100};
}
WorkerView Excluded(WorkerView worker) {
  worker.excluded = true;
  return worker;
}
WorkerView Sick(WorkerView worker, const char* why) {
  worker.health = Unavailable(why);
  return worker;
}

TEST(Placement, TakesTheLeastWork) {
  const struct {
    const char* what;
    std::vector<WorkerView> workers;
    size_t expected;
  } cases[] = {
      {"one", {Worker("a")}, 0},
      {"all equal: the order given", {Worker("a"), Worker("b"), Worker("c")}, 0},
      {"assigned counts first", {Worker("a", 2, 0, 9000), Worker("b", 1, 50, 500)}, 1},
      {"then what they report", {Worker("a", 1, 5), Worker("b", 1, 4), Worker("c", 1, 6)}, 1},
      {"then free KV", {Worker("a", 1, 5, 200), Worker("b", 1, 5, 300), Worker("c", 1, 5, 300)}, 1},
      {"too little KV comes behind any load", {Worker("a", 0, 0, 99), Worker("b", 7, 7, 100)}, 1},
      {"exactly enough KV", {Worker("a", 0, 0, 100), Worker("b", 1, 0, 200)}, 0},
      {"nobody has enough KV: the least work", {Worker("a", 1, 0, 50), Worker("b", 0, 0, 10)}, 1},
      {"excluded comes behind any load", {Excluded(Worker("a")), Worker("b", 9, 9)}, 1},
      {"excluded comes behind too little KV", {Excluded(Worker("a")), Worker("b", 9, 9, 1)}, 1},
      {"only excluded ones: the least work", {Excluded(Worker("a", 2)), Excluded(Worker("b", 1))}, 1},
      {"an excluded one before a sick one", {Sick(Worker("a"), "gone"), Excluded(Worker("b", 5))}, 1},
      {"a sick one never", {Sick(Worker("a"), "gone"), Worker("b", 5, 5, 0)}, 1},
  };
  for (const auto& c : cases) {
    const auto placement = Place(c.workers);
    ASSERT_TRUE(placement.ok()) << c.what;
    EXPECT_EQ(placement->worker, c.expected) << c.what;
  }
}

TEST(Placement, TakesWhereTheLeastIsComputedWhenSomeOfItIsCached) {
  const auto cached = [](WorkerView worker, int64_t tokens) {
    worker.cached = tokens;
    return worker;
  };
  const struct {
    const char* what;
    std::vector<WorkerView> workers;
    size_t expected;
  } cases[] = {
      {"the one that has it", {Worker("a"), cached(Worker("b"), 256)}, 1},
      {"the one that has more of it", {cached(Worker("a"), 128), cached(Worker("b"), 256)}, 1},
      {"busier by less than it saves", {Worker("a", 100), cached(Worker("b", 355), 256)}, 1},
      {"busier by more", {Worker("a", 100), cached(Worker("b", 357), 256)}, 0},
      {"what it reports may be over", {Worker("a"), cached(Worker("b", 0, 9000), 256)}, 1},
      {"a tie: assigned", {cached(Worker("a", 256), 256), Worker("b")}, 1},
      {"a tie: then free KV", {cached(Worker("a", 9, 9, 200), 128), cached(Worker("b", 9, 9, 300), 128)}, 1},
      {"not with too little KV", {Worker("a", 50), cached(Worker("b", 0, 0, 99), 256)}, 0},
      {"not where it has failed", {Worker("a", 50), Excluded(cached(Worker("b"), 256))}, 0},
      {"not where it cannot run", {Worker("a", 50), Sick(cached(Worker("b"), 256), "gone")}, 0},
  };
  for (const auto& c : cases) {
    const auto placement = Place(c.workers);
    ASSERT_TRUE(placement.ok()) << c.what;
    EXPECT_EQ(placement->worker, c.expected) << c.what;
    EXPECT_EQ(placement->cached, c.workers[c.expected].cached) << c.what;
  }
  EXPECT_EQ(Place(std::vector{cached(Worker("a", 3, 4), 256)})->reason,
            "a (assigned 3, reported 4, cached 256)");
}

TEST(Placement, SaysWhyItTookAWorker) {
  const WorkerView workers[] = {Worker("host:1", 3, 4)};
  EXPECT_EQ(Place(workers)->reason, "host:1 (assigned 3, reported 4)");
  const WorkerView again[] = {Excluded(Worker("host:1", 3, 4))};
  EXPECT_EQ(Place(again)->reason, "host:1 (assigned 3, reported 4, again for want of another)");
}

TEST(Placement, NamesEveryWorkerThatIsUnusable) {
  const WorkerView workers[] = {Sick(Worker("a:1"), "connection refused"),
                                Sick(Excluded(Worker("b:2")), "weights differ")};
  const Status status = Place(workers).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(StatusMessage(status), "no worker is usable: a:1: connection refused; b:2: weights differ");
  EXPECT_EQ(StatusMessage(Place({}).status()), "no worker is configured");
}

class IdleWorker final : public PrefillWorker {
 public:
  const std::string& name() const override { return name_; }
  Status health() const override { return health_; }
  WorkerLoad load() const override { return load_; }
  std::unique_ptr<PrefillCall> Start(const SequenceState&, DecodeCall&, PrefillOptions,
                                     std::shared_ptr<FlowQueue>) override {
    return nullptr;
  }
  std::string name_ = "idle";
  Status health_;
  WorkerLoad load_ = {1, 20, 300};
};

TEST(WorkerPool, AsksForTheKvThatALeaseBeginsWith) {
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(FirstKvTokens(100, 1000, 256), 356);
  EXPECT_EQ(FirstKvTokens(100, 200, 256), 200) << "never more than it may need";
  EXPECT_EQ(FirstKvTokens(100, 1000, kAll), 1000);
  EXPECT_EQ(FirstKvTokens(100, 100, 0), 100);
  WorkerPool<PrefillWorker> pool;
  for (const char* name : {"small", "large"}) {
    auto worker = std::make_unique<IdleWorker>();
    worker->name_ = name;
    worker->load_.free_kv_tokens = *name == 's' ? 300 : 400;
    worker->load_.reserve_ahead = 200;
    pool.Add(std::move(worker));
  }
  const WorkerPool<PrefillWorker>::Assignment busy(&pool, 1, 9);
  EXPECT_EQ(pool.Choose({}, {100, 5000})->worker, 0u);
  EXPECT_EQ(pool.Choose({}, {101, 5000})->worker, 1u);
  EXPECT_EQ(pool.Choose({}, {101, 300})->worker, 0u);
}

TEST(WorkerPool, CountsWhatIsAssignedWhileItIs) {
  WorkerPool<PrefillWorker> pool;
  auto worker = std::make_unique<IdleWorker>();
  IdleWorker* idle = worker.get();
  pool.Add(std::move(worker));
  using Assignment = WorkerPool<PrefillWorker>::Assignment;
  Assignment kept;
  {
    const Assignment first(&pool, 0, 10);
    Assignment second(&pool, 0, 5);
    EXPECT_EQ(pool.Choose({}, {})->reason, "idle (assigned 15, reported 21)");
    kept = std::move(second);
  }
  EXPECT_EQ(pool.Choose({}, {})->reason, "idle (assigned 5, reported 21)");
  kept = {};
  EXPECT_EQ(pool.Choose({0}, {})->reason, "idle (assigned 0, reported 21, again for want of another)");
  EXPECT_EQ(pool.usable(), 1u);
  idle->health_ = Unavailable("asleep");
  EXPECT_EQ(pool.usable(), 0u);
  EXPECT_EQ(StatusMessage(pool.Choose({}, {}).status()), "no worker is usable: idle: asleep");
}

}  // namespace
}  // namespace cachalot
