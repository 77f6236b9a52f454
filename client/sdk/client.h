#pragma once
// The C++ client of a Cachalot router. Needs nothing of Cachalot but its protos; types are std types only.
//
//   cachalot::client::Client client("127.0.0.1:8000");
//   cachalot::client::GenerateRequest request;
//   request.chat = {{"user", "Genesis 1:1"}};
//   auto stream = client.Generate(request);
//   cachalot::client::Event event;
//   while (stream->Next(&event)) std::cout << event.text;
//   if (auto status = stream->Finish(); !status.ok()) ...
//
// Several routers, "a:8000,b:8000": a stream whose router dies goes on at the next one, behind the last token
// that the caller has; the caller sees one stream.
//
// Thread-safe; a stream belongs to one thread, but Cancel may be called from any. Streams end before their
// Client.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace cachalot::client {

/// Canonical gRPC code (0 is OK) and a message that says what to do.
struct Status {
  int code = 0;
  std::string message;
  bool ok() const { return code == 0; }
};

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

/// Exactly one of token_ids, text and chat (else INVALID_ARGUMENT without a call). Absent fields take the router's defaults (protos: GenerateRequest).
struct GenerateRequest {
  std::string request_id;  // at most 256 bytes
  std::optional<std::vector<int32_t>> token_ids;
  std::optional<std::string> text;
  std::vector<ChatMessage> chat;
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<uint64_t> seed;
  std::optional<float> min_p, frequency_penalty, presence_penalty, repetition_penalty;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, what is added to its logit
  std::optional<int32_t> min_tokens;
  std::optional<int32_t> max_tokens;
  std::vector<int32_t> stop_token_ids;  // at most 1,024
  bool ignore_eos = false;
  std::vector<int32_t> resume_tokens;
  std::optional<int32_t> n;       // outputs
  std::vector<std::string> stop;  // strings that end an output; its text ends before them
  std::optional<int32_t> logprobs, prompt_logprobs;
  /// Of the whole stream; 0: none.
  int64_t timeout_ms = 0;
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

/// Natural logarithms, of the raw model distribution.
struct TokenLogprobs {
  float logprob = 0;              // of the token itself
  std::vector<TokenLogprob> top;  // the likeliest, likeliest first
};

/// Started, prompt log probabilities if asked for, tokens (any number of times), finished; with n > 1 the
/// choices' tokens are mixed, and each finishes.
struct Event {
  enum class Kind { kStarted, kTokens, kFinished, kPromptLogprobs } kind = Kind::kStarted;
  int32_t choice = 0;              // tokens, finished
  std::string request_id;          // started
  uint64_t seed = 0;               // started
  int32_t prompt_tokens = 0;       // started, finished
  std::vector<int32_t> token_ids;  // tokens
  std::string text;                // tokens, finished
  std::string finish_reason;       // finished: "stop" or "length"
  int32_t completion_tokens = 0;   // finished
  int32_t cached_tokens = 0;       // finished: of prompt_tokens, whose KV a prefill worker had already
  std::string matched_stop;        // finished: the stop string that ended the choice
  /// tokens: one of each id; prompt log probabilities: in order from prompt token 1.
  std::vector<TokenLogprobs> logprobs;
};

class TokenStream {
 public:
  virtual ~TokenStream() = default;
  /// Blocks for the next event; false at the end, Finish says why.
  virtual bool Next(Event* event) = 0;
  virtual Status Finish() = 0;
  virtual void Cancel() = 0;
};

struct ModelInfo {
  std::string model, mode, version;
  int32_t vocab_size = 0;
  int64_t max_context_tokens = 0;
  std::vector<int32_t> eos_token_ids;
  bool has_tokenizer = false;
};

struct ClientOptions {
  /// Failures in a row that brought nothing new before a stream gives up. 0: one with one router, else twice the
  /// number of routers.
  int attempts = 0;
};

class Client {
 public:
  /// `routers`: host:port or any gRPC target, several with commas between them. Does not connect yet.
  explicit Client(const std::string& routers, const ClientOptions& options = {});
  ~Client();

  /// With several routers, UNAVAILABLE is answered by going on at the next one with the seed of the first;
  /// the error after the last attempt names every router that was tried. Once it has started, a stream never
  /// goes on at a router whose workers have other weights or numerics. `timeout_ms` is of all attempts together.
  std::unique_ptr<TokenStream> Generate(const GenerateRequest& request);
  Status Tokenize(const std::string& text, std::vector<int32_t>* ids);
  Status GetModelInfo(ModelInfo* info);
  /// Debugging; the router must run with --debug-logits. Calls `rows` with consecutive rows [rows, vocab] in order.
  /// `values` has `count` floats. The numbers are the router's and not checked against each other: look whether
  /// count is rows x the vocabulary that you believe in, and whether the rows are yours, before you use them.
  Status Logits(
      const std::vector<int32_t>& ids, int decode, int max_chunk_tokens,
      const std::function<void(int64_t first_row, int64_t rows, const float* values, size_t count)>& rows);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cachalot::client
