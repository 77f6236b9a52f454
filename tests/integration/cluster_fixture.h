#pragma once
// What the integration tests ask of a cluster and of the embedded mode.

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/embedded/run.h"
#include "client/sdk/client.h"
#include "tests/support/oracle.h"
#include "tests/support/process_cluster.h"
#include "tests/support/verses.h"

namespace cachalot::testing {

inline std::unique_ptr<ProcessCluster> MustStart(const ClusterOptions& options) {
  auto cluster = ProcessCluster::Start(options);
  if (!cluster.ok()) {
    ADD_FAILURE() << cluster.status();
    return nullptr;
  }
  return std::move(*cluster);
}

inline std::unique_ptr<EmbeddedModel> MustLoad(const std::string& directory, const std::string& mode = "exact") {
  EmbeddedOptions options;
  options.model = directory;
  options.mode = mode;
  auto embedded = EmbeddedModel::Load(options);
  if (!embedded.ok()) {
    ADD_FAILURE() << embedded.status();
    return nullptr;
  }
  return std::move(*embedded);
}

struct Output {
  std::vector<int32_t> ids;
  std::string text, finish_reason;
  int cached_tokens = 0;
  bool started = false;
  client::Status status;
};

inline Output Ask(client::Client& client, const client::GenerateRequest& request) {
  Output output;
  auto stream = client.Generate(request);
  client::Event event;
  while (stream->Next(&event)) {
    output.started = true;
    output.ids.insert(output.ids.end(), event.token_ids.begin(), event.token_ids.end());
    output.text += event.text;
    output.finish_reason = event.finish_reason;
    output.cached_tokens = event.cached_tokens;
  }
  output.status = stream->Finish();
  return output;
}

inline client::GenerateRequest ChatRequest(const std::string& text, int max_tokens = 128) {
  client::GenerateRequest request;
  request.chat = {{"user", text}};
  request.max_tokens = max_tokens;
  request.temperature = 0.f;
  request.timeout_ms = 60'000;
  return request;
}

inline client::GenerateRequest IdsRequest(std::vector<int32_t> ids, int max_tokens, float temperature, uint64_t seed) {
  client::GenerateRequest request;
  request.token_ids = std::move(ids);
  request.max_tokens = max_tokens;
  request.temperature = temperature;
  request.seed = seed;
  request.ignore_eos = true;
  request.timeout_ms = 60'000;
  return request;
}

/// Output tokens of the embedded mode for the same request.
inline std::vector<int32_t> EmbeddedTokens(EmbeddedModel& embedded, const client::GenerateRequest& request) {
  SequenceState state;
  state.prompt = *request.token_ids;
  state.params.sampling = {*request.temperature, 0, 1.f, *request.seed};
  state.params.max_tokens = *request.max_tokens;
  state.params.ignore_eos = request.ignore_eos;
  std::vector<int32_t> tokens;
  RunOptions run;
  run.on_token = [&](int64_t, int32_t token, FinishReason) { tokens.push_back(token); };
  const Status status = RunEmbedded(embedded, state, run);
  EXPECT_TRUE(status.ok()) << status;
  return tokens;
}

/// Logits [ids, vocab] of the embedded mode, the last `decode` ids one at a time.
inline std::vector<float> EmbeddedLogits(EmbeddedModel& embedded, const std::vector<int32_t>& ids, int decode) {
  SequenceState state;
  state.prompt.assign(ids.begin(), ids.end() - decode);
  state.forced.assign(ids.end() - decode, ids.end());
  state.forced.push_back(0);
  state.want_logits = true;
  state.params.max_tokens = decode + 1;
  state.params.ignore_eos = true;
  std::vector<float> all;
  RunOptions run;
  run.on_logits = [&](std::span<const float> rows) { all.insert(all.end(), rows.begin(), rows.end()); };
  const Status status = RunEmbedded(embedded, state, run);
  EXPECT_TRUE(status.ok()) << status;
  return all;
}

/// The same through a router that runs with --debug-logits.
inline std::vector<float> ClusterLogits(client::Client& client, const std::vector<int32_t>& ids, int vocab, int decode,
                                        int chunk) {
  std::vector<float> all(ids.size() * vocab);
  int64_t rows_seen = 0;
  const auto take = [&](int64_t first, int64_t rows, const float* values, size_t count) {
    ASSERT_TRUE(first >= 0 && rows >= 0 && first + rows <= static_cast<int64_t>(ids.size()));
    ASSERT_EQ(count, static_cast<size_t>(rows * vocab));
    std::copy_n(values, rows * vocab, all.begin() + first * vocab);
    rows_seen += rows;
  };
  const auto status = client.Logits(ids, decode, chunk, take);
  EXPECT_TRUE(status.ok()) << status.message;
  EXPECT_EQ(rows_seen, static_cast<int64_t>(ids.size()));
  return all;
}

}  // namespace cachalot::testing
