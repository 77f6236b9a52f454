#include "client/sdk/resume_state.h"

#include <grpcpp/support/status.h>

#include <algorithm>

#include "client/sdk/convert.h"

namespace cachalot::client {
namespace {

constexpr int kMaxChoices = 64;  // as the router's

Status DataLoss(const std::string& message) { return {grpc::StatusCode::DATA_LOSS, message}; }

}  // namespace

ResumeState::ResumeState(v1::GenerateRequest request)
    : request_(std::move(request)), choices_(std::clamp(request_.has_n() ? request_.n() : 1, 1, kMaxChoices)) {}

bool ResumeState::finished() const {
  return std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.finished; });
}

int64_t ResumeState::tokens() const {
  int64_t count = 0;
  for (const Choice& choice : choices_) count += static_cast<int64_t>(choice.tokens.size());
  return count;
}

bool ResumeState::Untouched() const {
  return std::all_of(choices_.begin(), choices_.end(),
                     [](const Choice& c) { return c.tokens.empty() && !c.finished; });
}

std::vector<int> ResumeState::Missing(int choice) const {
  if (choice != kAllChoices) return choices_[choice].finished ? std::vector<int>() : std::vector<int>{choice};
  if (Untouched()) return {kAllChoices};  // its choices can still be admitted together
  std::vector<int> missing;
  for (size_t i = 0; i < choices_.size(); ++i)
    if (!choices_[i].finished) missing.push_back(static_cast<int>(i));
  return missing;
}

/// All choices have the same ones; they come with choice 0, before its tokens.
bool ResumeState::NeedsPromptLogprobs(int choice) const {
  if (!request_.has_prompt_logprobs() || choice > 0) return false;
  return choices_[0].tokens.empty() && !choices_[0].finished;
}

v1::GenerateRequest ResumeState::RequestFor(int choice) const {
  v1::GenerateRequest request = request_;
  if (started_) {
    request.set_request_id(started_->request_id());
    const uint64_t seed = started_->seed() + (choice == kAllChoices ? 0 : static_cast<uint64_t>(choice));
    request.mutable_sampling()->set_seed(seed);
  }
  if (!NeedsPromptLogprobs(choice)) request.clear_prompt_logprobs();
  if (choice == kAllChoices) return request;
  request.clear_n();
  const std::vector<int32_t>& tokens = choices_[choice].tokens;
  request.mutable_resume_tokens()->Add(tokens.begin(), tokens.end());
  return request;
}

ResumeState::Taken ResumeState::Take(int choice, const v1::GenerateResponse& response) {
  if (response.has_started()) return TakeStarted(response);
  if (response.has_prompt_logprobs()) return TakePromptLogprobs(response);
  Taken taken;
  Event event = FromProto(response);
  if (choice != kAllChoices) event.choice = choice;
  if (!started_ || event.choice < 0 || event.choice >= static_cast<int>(choices_.size()) ||
      choices_[event.choice].finished) {
    taken.refusal = DataLoss("the router sent tokens of choice " + std::to_string(event.choice) + " of " +
                             std::to_string(choices_.size()) + " before its start or behind its end");
    return taken;
  }
  Choice& at = choices_[event.choice];
  at.tokens.insert(at.tokens.end(), event.token_ids.begin(), event.token_ids.end());
  at.finished = event.kind == Event::Kind::kFinished;
  taken.news = at.finished || !event.token_ids.empty();
  taken.event = std::move(event);
  return taken;
}

ResumeState::Taken ResumeState::TakeStarted(const v1::GenerateResponse& response) {
  Taken taken;
  const v1::Started& started = response.started();
  if (!started_) {
    started_ = started;
    taken.event = FromProto(response);
    return taken;
  }
  // Tokens of other weights, or behind another prompt, are not this output.
  if (started_->compat() != started.compat() && !started_->compat().empty() && !started.compat().empty()) {
    taken.refusal = {grpc::StatusCode::FAILED_PRECONDITION,
                     "it serves another model: compat is \"" + started.compat() + "\" there, \"" +
                         started_->compat() + "\" where the output began"};
  } else if (started_->prompt_tokens() != started.prompt_tokens()) {
    taken.refusal = {grpc::StatusCode::FAILED_PRECONDITION,
                     "it has " + std::to_string(started.prompt_tokens()) + " tokens for a prompt of " +
                         std::to_string(started_->prompt_tokens())};
  }
  return taken;
}

ResumeState::Taken ResumeState::TakePromptLogprobs(const v1::GenerateResponse& response) {
  Taken taken;
  const int known = prompt_logprobs_ + 1 - response.prompt_logprobs().first();
  if (known < 0) {
    taken.refusal = DataLoss("log probability of prompt token " +
                             std::to_string(response.prompt_logprobs().first()) + " came before that of token " +
                             std::to_string(prompt_logprobs_ + 1));
    return taken;
  }
  Event event = FromProto(response);
  if (known >= static_cast<int>(event.logprobs.size())) return taken;
  event.logprobs.erase(event.logprobs.begin(), event.logprobs.begin() + known);
  prompt_logprobs_ += static_cast<int>(event.logprobs.size());
  taken.news = true;
  taken.event = std::move(event);
  return taken;
}

}  // namespace cachalot::client
