#pragma once
// What a caller has of an output whose stream may break, and what is still to be asked for: no RPC in here.
//
// A whole request is asked for until it has started and brought something. After that each choice goes on as a
// request of its own, with the seed that was drawn for it and the tokens that the caller has.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cachalot/v1/generation.pb.h"
#include "client/sdk/client.h"

namespace cachalot::client {

inline constexpr int kAllChoices = -1;

class ResumeState {
 public:
  explicit ResumeState(v1::GenerateRequest request);

  /// What is to be asked for when the stream of `choice` (kAllChoices: of the whole request) has broken: the
  /// whole request again, or the unfinished ones of its choices. Empty: nothing, the caller has everything.
  std::vector<int> Missing(int choice) const;
  v1::GenerateRequest RequestFor(int choice) const;

  struct Taken {
    std::optional<Event> event;  // for the caller; none: it has this already
    bool news = false;           // the output has come further
    Status refusal;              // not OK: this stream does not continue what the caller has
  };
  /// `response` came on a stream that RequestFor(choice) began.
  Taken Take(int choice, const v1::GenerateResponse& response);

  bool started() const { return started_.has_value(); }
  bool finished() const;
  /// Output tokens that the caller got, of all choices.
  int64_t tokens() const;

 private:
  struct Choice {
    std::vector<int32_t> tokens;
    bool finished = false;
  };
  Taken TakeStarted(const v1::GenerateResponse& response);
  Taken TakePromptLogprobs(const v1::GenerateResponse& response);
  bool Untouched() const;
  bool NeedsPromptLogprobs(int choice) const;

  const v1::GenerateRequest request_;
  std::optional<v1::Started> started_;
  std::vector<Choice> choices_;
  int prompt_logprobs_ = 0;  // entries that the caller has, from prompt token 1 on
};

}  // namespace cachalot::client
