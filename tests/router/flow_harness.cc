#include "tests/router/flow_harness.h"

#include <set>

#include "common/base/check.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

using Kind = FlowEvent::Kind;

class LeaseHandle final : public DecodeCall {
 public:
  explicit LeaseHandle(FakeDecode::Lease* lease) : lease_(lease) {}
  ~LeaseHandle() override { lease_->open = false; }
  void Acknowledge(int64_t next_index) override { lease_->acknowledged.push_back(next_index); }

 private:
  FakeDecode::Lease* lease_;
};

class CallHandle final : public PrefillCall {
 public:
  explicit CallHandle(FakePrefill::Call* call) : call_(call) {}
  ~CallHandle() override { call_->open = false; }
  bool waits_for_reader() const override { return call_->waits_for_reader; }

 private:
  FakePrefill::Call* call_;
};

}  // namespace

FlowEvent EventOf(Kind kind, uint32_t attempt) {
  FlowEvent event;
  event.kind = kind;
  event.attempt = attempt;
  return event;
}

// ---- decode

void FakeDecode::Lease::Push(FlowEvent event) {
  CHECK_MSG(open, "the script goes on behind the end of a lease");
  queue->Push(std::move(event));
}
void FakeDecode::Lease::Grant() { Push(EventOf(Kind::kGranted)); }
void FakeDecode::Lease::Tokens(int64_t from, int64_t to, FinishReason finish) {
  for (int64_t i = from; i < to; ++i) {
    FlowEvent event = EventOf(Kind::kToken);
    event.index = i;
    event.token = TokenAt(i);
    if (i + 1 == to) event.finish = finish;
    if (state.want_logits) event.logits = {static_cast<float>(i)};
    Push(std::move(event));
  }
}
void FakeDecode::Lease::Fail(Status error) {
  FlowEvent event = EventOf(Kind::kDecodeFailed);
  event.error = std::move(error);
  Push(std::move(event));
}

void FakeDecode::Lease::Preempt(int64_t next_index) {
  FlowEvent event = EventOf(Kind::kPreempted);
  event.index = next_index;
  Push(std::move(event));
}

std::unique_ptr<DecodeCall> FakeDecode::Open(const SequenceState& state, std::shared_ptr<FlowQueue> queue) {
  leases.push_back(std::make_unique<Lease>());
  leases.back()->state = state;
  leases.back()->queue = std::move(queue);
  if (on_open) on_open(*leases.back());
  return std::make_unique<LeaseHandle>(leases.back().get());
}

int FakeDecode::open() const {
  int count = 0;
  for (const auto& lease : leases) count += lease->open;
  return count;
}

// ---- prefill

void FakePrefill::Call::Push(FlowEvent event) {
  CHECK_MSG(open, "the script goes on behind the end of a prefill");
  queue->Push(std::move(event));
}
void FakePrefill::Call::FirstToken(FinishReason finish) {
  FlowEvent event = EventOf(Kind::kFirstToken, options.attempt);
  event.index = static_cast<int64_t>(state.emitted.size());
  event.token = TokenAt(event.index);
  event.finish = finish;
  Push(std::move(event));
}
void FakePrefill::Call::Logits(int64_t first_row, std::vector<float> rows) {
  FlowEvent event = EventOf(Kind::kPromptLogits, options.attempt);
  event.first_row = first_row;
  event.logits = std::move(rows);
  Push(std::move(event));
}
void FakePrefill::Call::PromptRows(int64_t first, int64_t count) {
  FlowEvent event = EventOf(Kind::kPromptLogprobs, options.attempt);
  event.first_row = first;
  event.logprobs.resize(static_cast<size_t>(count));
  Push(std::move(event));
}
void FakePrefill::Call::Commit() { Push(EventOf(Kind::kCommitted, options.attempt)); }
void FakePrefill::Call::Fail(Status error, bool untaken) {
  FlowEvent event = EventOf(Kind::kPrefillFailed, options.attempt);
  event.untaken = untaken;
  event.error = std::move(error);
  Push(std::move(event));
}

std::unique_ptr<PrefillCall> FakePrefill::Start(const SequenceState& state, DecodeCall&,
                                                PrefillOptions options, std::shared_ptr<FlowQueue> queue) {
  calls.push_back(std::make_unique<Call>());
  calls.back()->state = state;
  calls.back()->options = options;
  calls.back()->queue = std::move(queue);
  if (on_start) on_start(*calls.back());
  return std::make_unique<CallHandle>(calls.back().get());
}

int FakePrefill::open() const {
  int count = 0;
  for (const auto& call : calls) count += call->open;
  return count;
}

// ---- the client

rpc::Task<bool> FakeClient::Started() {
  ++started;
  busy = true;
  co_await go_on.WaitUntil(TimePoint::max());
  busy = false;
  co_return !refuses_start;
}

rpc::Task<bool> FakeClient::Tokens(std::vector<int32_t> tokens) {
  EXPECT_FALSE(tokens.empty());
  EXPECT_EQ(started, 1);
  busy = true;
  co_await go_on.WaitUntil(TimePoint::max());
  busy = false;
  if (refuses_tokens) co_return false;
  messages.push_back(std::move(tokens));
  co_return true;
}

rpc::Task<bool> FakeClient::Logits(int64_t first_row, std::vector<float> values) {
  busy = true;
  co_await go_on.WaitUntil(TimePoint::max());
  busy = false;
  if (refuses_logits) co_return false;
  rows.emplace_back(first_row, std::move(values));
  co_return true;
}

rpc::Task<bool> FakeClient::PromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) {
  busy = true;
  co_await go_on.WaitUntil(TimePoint::max());
  busy = false;
  if (refuses_tokens) co_return false;
  for (size_t i = 0; i < entries.size(); ++i) prompt_rows.push_back(first + static_cast<int64_t>(i));
  co_return true;
}

std::vector<int32_t> FakeClient::tokens() const {
  std::vector<int32_t> all;
  for (const auto& message : messages) all.insert(all.end(), message.begin(), message.end());
  return all;
}

// ---- the test

FlowTest::FlowTest() {
  context_.loop = &loop_;
  context_.decode = &decode_pool_;
  context_.prefill = &prefill_pool_;
  state_.request_id = "test";
  state_.prompt = {1, 2, 3};
  state_.params.max_tokens = 64;
  AddDecode();
  AddPrefill();
}

namespace {
/// That none of the pool's workers has work of ours any more.
template <typename Worker, typename Fake>
void ExpectNothingAssigned(const WorkerPool<Worker>& pool, const std::vector<Fake*>& fakes) {
  for (size_t i = 0; i < fakes.size(); ++i) {
    std::set<size_t> others;
    for (size_t j = 0; j < fakes.size(); ++j) {
      fakes[j]->status = OkStatus();
      fakes[j]->reported = kIdle;
      if (j != i) others.insert(j);
    }
    const auto placement = pool.Choose(others, {});
    ASSERT_TRUE(placement.ok()) << placement.status();
    EXPECT_EQ(placement->reason, fakes[i]->name() + " (assigned 0, reported 0)");
  }
}
}  // namespace

void FlowTest::TearDown() {
  EXPECT_EQ(loop_.live_tasks(), 0) << "the request has not ended";
  EXPECT_EQ(open_calls(), 0);
  ExpectNothingAssigned(decode_pool_, decodes_);
  ExpectNothingAssigned(prefill_pool_, prefills_);
  client_.go_on.Set();
  loop_.Shutdown(Duration::zero());
  while (loop_.PollOnce(TimePoint::max()) != rpc::Loop::Poll::kStopped) {
  }
}

FakeDecode& FlowTest::AddDecode() {
  auto worker = std::make_unique<FakeDecode>("decode" + std::to_string(decodes_.size()));
  decodes_.push_back(worker.get());
  decode_pool_.Add(std::move(worker));
  return *decodes_.back();
}

FakePrefill& FlowTest::AddPrefill() {
  auto worker = std::make_unique<FakePrefill>("prefill" + std::to_string(prefills_.size()));
  prefills_.push_back(worker.get());
  prefill_pool_.Add(std::move(worker));
  return *prefills_.back();
}

rpc::Task<void> FlowTest::Keep(FlowTest* test, PrefillOptions options, TimePoint deadline) {
  StatusOr<FlowResult> result =
      co_await RunRequest(&test->context_, test->state_, &test->client_, options, &test->cancel_, deadline);
  test->result_.emplace(std::move(result));
}

void FlowTest::Run(TimePoint deadline, PrefillOptions options) {
  ASSERT_TRUE(loop_.Spawn(Keep(this, options, deadline), "request"));
  Settle();
}

void FlowTest::Settle() {
  // Two empty looks: the first may only have found a wake-up of the loop itself.
  for (int idle = 0; idle < 2;)
    idle = loop_.PollOnce(TimePoint::min()) == rpc::Loop::Poll::kTimeout ? idle + 1 : 0;
}

bool FlowTest::Until(const std::function<bool()>& condition) {
  const TimePoint end = loop_.Now() + kPatience;
  while (!condition() && loop_.Now() < end) loop_.PollOnce(end);
  return condition();
}

Status FlowTest::Outcome() {
  if (!Until([this] { return done(); })) return Internal("the request does not end");
  return result_->status();
}

void FlowTest::FinishOutput(int64_t from, int64_t to) {
  call().FirstToken();
  call().Commit();
  lease().Tokens(from + 1, to, FinishReason::kStop);
  const Status status = Outcome();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(client_.tokens(), Expected(to));
  EXPECT_EQ(client_.started, 1);
}

void FlowTest::RunToStreaming() {
  Run();
  ASSERT_EQ(decode().leases.size(), 1u);
  lease().Grant();
  Settle();
  ASSERT_EQ(prefill().calls.size(), 1u);
  call().FirstToken();
  call().Commit();
  lease().Tokens(1, 2);
  Settle();
  ASSERT_EQ(client_.tokens(), Expected(2));
}

std::vector<int32_t> FlowTest::Expected(int64_t tokens) const {
  std::vector<int32_t> expected;
  for (auto i = static_cast<int64_t>(state_.emitted.size()); i < tokens; ++i) expected.push_back(TokenAt(i));
  return expected;
}

int FlowTest::open_calls() const {
  int count = 0;
  for (const FakeDecode* worker : decodes_) count += worker->open();
  for (const FakePrefill* worker : prefills_) count += worker->open();
  return count;
}

}  // namespace cachalot::testing
