#pragma once
// A request flow with scripted workers and client, on a loop that the test polls: nothing happens behind its
// back.

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "router/request_flow.h"

namespace cachalot::testing {

/// What the model of these tests says at an output index.
constexpr int32_t TokenAt(int64_t index) { return static_cast<int32_t>(100 + index); }

inline constexpr WorkerLoad kIdle{0, 0, 1'000'000};

FlowEvent EventOf(FlowEvent::Kind kind, uint32_t attempt = 0);

class FakeDecode final : public DecodeWorker {
 public:
  struct Lease {
    SequenceState state;  // as it was opened
    std::shared_ptr<FlowQueue> queue;
    bool open = true;
    std::vector<int64_t> acknowledged;

    void Grant();
    /// Tokens [from, to) as one step after the other; `finish` belongs to the last.
    void Tokens(int64_t from, int64_t to, FinishReason finish = FinishReason::kNone);
    void Fail(Status error);
    void Preempt(int64_t next_index);

   private:
    void Push(FlowEvent event);
  };

  explicit FakeDecode(std::string name) : name_(std::move(name)) {}
  const std::string& name() const override { return name_; }
  Status health() const override {
    ++looks;
    return status;
  }
  WorkerLoad load() const override { return reported; }
  std::unique_ptr<DecodeCall> Open(const SequenceState& state, std::shared_ptr<FlowQueue> queue) override;
  int open() const;

  Status status;
  WorkerLoad reported = kIdle;
  std::function<void(Lease&)> on_open;  // at once, inside Open
  std::vector<std::unique_ptr<Lease>> leases;
  mutable int looks = 0;  // at its health

 private:
  const std::string name_;
};

class FakePrefill final : public PrefillWorker {
 public:
  struct Call {
    SequenceState state;
    PrefillOptions options;
    std::shared_ptr<FlowQueue> queue;
    bool open = true;
    bool waits_for_reader = false;

    void FirstToken(FinishReason finish = FinishReason::kNone);
    void Logits(int64_t first_row, std::vector<float> rows);
    /// Log probabilities of prompt tokens [first, first + count).
    void PromptRows(int64_t first, int64_t count);
    void Commit();
    /// `untaken`: before the worker has said anything.
    void Fail(Status error, bool untaken = false);
    void Push(FlowEvent event);
  };

  explicit FakePrefill(std::string name) : name_(std::move(name)) {}
  const std::string& name() const override { return name_; }
  Status health() const override {
    ++looks;
    return status;
  }
  WorkerLoad load() const override { return reported; }
  uint64_t life() const override { return lives; }
  std::unique_ptr<PrefillCall> Start(const SequenceState& state, DecodeCall& lease, PrefillOptions options,
                                     std::shared_ptr<FlowQueue> queue) override;
  int open() const;

  Status status;
  WorkerLoad reported = kIdle;
  uint64_t lives = 0;
  std::function<void(Call&)> on_start;  // at once, inside Start
  std::vector<std::unique_ptr<Call>> calls;
  mutable int looks = 0;

 private:
  const std::string name_;
};

class FakeClient final : public FlowSink {
 public:
  explicit FakeClient(rpc::Loop* loop) : go_on(loop) { go_on.Set(); }
  rpc::Task<bool> Started() override;
  rpc::Task<bool> Tokens(std::vector<int32_t> tokens) override;
  rpc::Task<bool> Logits(int64_t first_row, std::vector<float> rows) override;
  rpc::Task<bool> PromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) override;

  /// What it has, in order.
  std::vector<int32_t> tokens() const;

  int started = 0;
  std::vector<std::vector<int32_t>> messages;
  std::vector<std::pair<int64_t, std::vector<float>>> rows;
  std::vector<int64_t> prompt_rows;  // tokens whose log probabilities it has, in order
  bool refuses_start = false, refuses_tokens = false, refuses_logits = false;
  rpc::Event go_on;   // reset: it reads nothing
  bool busy = false;  // somebody waits for go_on
};

class FlowTest : public ::testing::Test {
 protected:
  FlowTest();
  /// Whatever the test did: nothing may be left of its request.
  void TearDown() override;

  /// Workers before Run; the first of each kind is there from the start.
  FakeDecode& AddDecode();
  FakePrefill& AddPrefill();
  FakeDecode& decode(size_t i = 0) { return *decodes_[i]; }
  FakePrefill& prefill(size_t i = 0) { return *prefills_[i]; }
  FakeDecode::Lease& lease(size_t worker = 0) { return *decode(worker).leases.back(); }
  FakePrefill::Call& call(size_t worker = 0) { return *prefill(worker).calls.back(); }

  /// Starts the request and lets it come as far as it gets.
  void Run(TimePoint deadline = TimePoint::max(), PrefillOptions options = {});
  /// Lets everything run that can run now.
  void Settle();
  /// Polls until the request has ended.
  Status Outcome();
  /// Polls until `condition` holds; false after long.
  bool Until(const std::function<bool()>& condition);
  /// To where the decode worker streams: output tokens [0, 2) are with the client.
  void RunToStreaming();
  /// The request ends well on worker 0: `from` is its first token, and `to` tokens are with the client in the
  /// end.
  void FinishOutput(int64_t from, int64_t to);
  std::vector<int32_t> Expected(int64_t tokens) const;
  bool done() const { return result_.has_value(); }
  int open_calls() const;

  rpc::Loop loop_{{.name = "flow"}};
  WorkerPool<DecodeWorker> decode_pool_;
  WorkerPool<PrefillWorker> prefill_pool_;
  FlowContext context_;
  SequenceState state_;
  FakeClient client_{&loop_};
  rpc::CancelScope cancel_;
  std::optional<StatusOr<FlowResult>> result_;

 private:
  static rpc::Task<void> Keep(FlowTest* test, PrefillOptions options, TimePoint deadline);

  std::vector<FakeDecode*> decodes_;
  std::vector<FakePrefill*> prefills_;
};

}  // namespace cachalot::testing
