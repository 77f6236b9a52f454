#include "common/discovery/name_watch.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "common/base/log.h"

namespace cachalot {

struct NameWatch::State {
  struct Name {
    Seed seed;
    std::vector<std::string> addresses{};
    Status trouble = Unavailable("not resolved yet");
    bool asking = false;
    bool hurry = false;  // somebody waits for the next answer
    std::optional<TimePoint> asked{};
  };

  void Answered(size_t i, const StatusOr<std::vector<std::string>>& hosts) {
    std::lock_guard lock(mutex);
    Name& name = names[i];
    name.asking = false;
    const Status trouble = hosts.ok() && hosts->empty() ? NotFound("no address") : hosts.status();
    const bool is_new = StatusMessage(trouble) != StatusMessage(name.trouble);
    name.trouble = trouble;
    if (!trouble.ok()) {
      if (is_new && trouble.code() != StatusCode::kCancelled)
        LogWarning(what + " at " + name.seed.text + ": " + StatusMessage(trouble) +
                   (name.addresses.empty() ? "" : "; those known stay"));
      return;
    }
    name.addresses.clear();
    for (const std::string& host : *hosts) name.addresses.push_back(JoinHostPort(host, name.seed.port));
  }

  std::string what;
  std::mutex mutex;
  std::vector<Name> names;
};

NameWatch::NameWatch(std::string what, std::vector<Seed> names, Resolver* resolver, NameWatchOptions options)
    : resolver_(resolver), options_(options), state_(std::make_shared<State>()) {
  state_->what = std::move(what);
  for (Seed& seed : names) state_->names.push_back({std::move(seed)});
}

bool NameWatch::empty() const { return state_->names.empty(); }

void NameWatch::Ask(TimePoint now, bool soon, const std::function<void()>& on_answer) {
  std::vector<std::pair<size_t, std::string>> due;
  {
    std::lock_guard lock(state_->mutex);
    for (size_t i = 0; i < state_->names.size(); ++i) {
      State::Name& name = state_->names[i];
      name.hurry |= soon || name.addresses.empty();
      const Duration pause = name.hurry ? std::min(options_.at_least, options_.interval) : options_.interval;
      if (name.asking || (name.asked && now < *name.asked + pause)) continue;
      name.asking = true;
      name.hurry = false;
      name.asked = now;
      due.emplace_back(i, name.seed.name);
    }
  }
  for (const auto& [i, name] : due)
    resolver_->Resolve(name, [state = state_, i = i, on_answer](const StatusOr<std::vector<std::string>>& hosts) {
      state->Answered(i, hosts);
      if (on_answer) on_answer();
    });
}

std::vector<std::string> NameWatch::Addresses() const {
  std::lock_guard lock(state_->mutex);
  std::vector<std::string> all;
  for (const State::Name& name : state_->names)
    all.insert(all.end(), name.addresses.begin(), name.addresses.end());
  return all;
}

std::string NameWatch::Trouble() const {
  std::lock_guard lock(state_->mutex);
  std::string trouble;
  for (const State::Name& name : state_->names)
    if (!name.trouble.ok())
      trouble += (trouble.empty() ? "" : "; ") + name.seed.text + ": " + StatusMessage(name.trouble);
  return trouble;
}

}  // namespace cachalot
