// Diagnosis: a key for the call that a rank is in and a key for its end.
#include "cairn/dist/diagnosis.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

namespace cairn::dist {
namespace {

constexpr std::string_view kFailed = "failed ", kLeft = "left ", kFailing = " failing";
// Words are for people; no error grows without bound by quoting others.
constexpr size_t kLongest = 2000;

// Whether both should be the same call but are not.
bool differ(const CallShape& a, const CallShape& b) {
  return is_collective(a.kind) && is_collective(b.kind) && a.sequence == b.sequence && !(a == b);
}

}  // namespace

Diagnosis::Diagnosis(const GroupOptions& options)
    : options_(options), rank_(options.rank), size_(options.size) {}

std::string Diagnosis::list_of(std::span<const int> ranks) const {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i)
    out += cat(i == 0 ? "" : ", ", options_.name_of(ranks[i]));
  return out;
}

std::string Diagnosis::key(std::string_view what, int rank) const {
  return cat(options_.name, "/diagnosis/", what, "/", rank);
}

void Diagnosis::tell(const std::string& key, std::string_view word) {
  store_mute_ = true;
  options_.store->set(key, word, kAnswer);
  store_mute_ = false;
}

std::optional<std::string> Diagnosis::ask(const std::string& key, Milliseconds at_most) {
  store_mute_ = true;
  auto word = options_.store->find(key, at_most);
  store_mute_ = false;
  return word;
}

void Diagnosis::waits(const Call& call) noexcept {
  try {
    std::string word(sizeof call.is, '\0');
    std::memcpy(word.data(), &call.is, sizeof call.is);
    tell(key("call", rank_), word + describe(call));
  } catch (...) {  // a store that is gone too has no readers
  }
}

void Diagnosis::waits_no_more() noexcept {
  try {
    tell(key("call", rank_), "");  // too short to be read as a call
  } catch (...) {
  }
}

void Diagnosis::failed(const Call& call, std::string_view text) noexcept {
  if (std::exchange(ended_, true) || size_ == 1) return;
  waits(call);
  try {
    const std::string word =
        !quoted_.empty() ? quoted_ : cat(name(rank_), " failed in ", describe(call), ": ", text);
    tell(key("end", rank_), cat(kFailed, std::string_view(word).substr(0, kLongest)));
  } catch (...) {
  }
}

void Diagnosis::left(uint64_t calls, std::string_view why) noexcept {
  if (std::exchange(ended_, true) || size_ == 1) return;
  try {
    const bool failing = !why.empty() || std::uncaught_exceptions() > 0;
    tell(key("end", rank_), cat(kLeft, calls, failing ? kFailing : "", why.substr(0, kLongest)));
  } catch (...) {
  }
}

bool Diagnosis::is_past(const Call& call, int peer) noexcept {
  try {
    const Word word = read(peer, kPatience);
    const bool later = word.is && is_collective(word.is->kind) && is_collective(call.is.kind) &&
                       word.is->sequence > call.is.sequence;
    return word.left || later;
  } catch (...) {
    return false;
  }
}

Diagnosis::Word Diagnosis::read(int rank, Milliseconds at_most) {
  Word word;
  if (const auto end = ask(key("end", rank), at_most)) {
    if (end->starts_with(kFailed)) word.failure = end->substr(kFailed.size());
    uint64_t calls = 0;
    const char* last = end->data() + end->size();
    if (end->starts_with(kLeft)) {
      const char* rest = std::from_chars(end->data() + kLeft.size(), last, calls).ptr;
      word.left = calls;
      if (const std::string_view text(rest, last); text.starts_with(kFailing)) {
        const std::string_view why = text.substr(kFailing.size());
        word.failure =
            why.empty() ? cat(name(rank), " failed with an exception after ", calls, " collectives")
                        : cat(name(rank), " failed: ", why);
      }
    }
  }
  if (const auto text = ask(key("call", rank), at_most); text && text->size() > sizeof(CallShape)) {
    CallShape is;
    std::memcpy(static_cast<void*>(&is), text->data(), sizeof is);
    word.is = is;
    word.call = text->substr(sizeof is);
  }
  return word;
}

std::vector<Diagnosis::Word> Diagnosis::gather(const Call& call, int until) noexcept {
  waits(call);
  std::vector<Word> words(static_cast<size_t>(size_));
  const Deadline deadline(kGather), mute(kMute);
  try {
    for (;; std::this_thread::sleep_for(Milliseconds(5))) {
      bool all = true, differing = false;
      for (int r = 0; r < size_; ++r) {
        Word& word = words[static_cast<size_t>(r)];
        if (word.silent() || r == until) word = read(r);
        all = all && !word.silent();
        differing = differing || (word.is && differ(*word.is, call.is));
      }
      // A peer whose connection ended is about to say why, unless that is plain already.
      if (until >= 0 && !differing) {
        const Word& its = words[static_cast<size_t>(until)];
        all = its.ended() || (its.silent() && mute.expired());
      }
      if (all || deadline.expired()) break;
    }
  } catch (...) {  // the store's process is gone: what was read until then must do
  }
  return words;
}

std::string Diagnosis::finished(const Call& call, int rank, const Word& word) const {
  return cat(name(rank), " finished after ", *word.left, " collectives, ", name(rank_),
             " waits in ", describe(call));
}

std::optional<std::string> Diagnosis::explained(const Call& call, const std::vector<Word>& words,
                                                std::span<const int> peers) {
  for (const Word& word : words)
    if (word.is && differ(*word.is, call.is)) return list(call, words);
  const auto quote = [&](int r) {
    quoted_ = words[static_cast<size_t>(r)].failure;
    return cat(describe(call), ": ", quoted_);
  };
  for (int r : peers) {
    if (!words[static_cast<size_t>(r)].failure.empty()) return quote(r);
    if (const Word& word = words[static_cast<size_t>(r)]; word.left) return finished(call, r, word);
  }
  // They say that they wait too, so somebody else is the reason.
  std::vector<int> mute;
  for (int r : peers)
    if (words[static_cast<size_t>(r)].silent()) return {};
  for (int r = 0; r < size_; ++r) {
    const Word& word = words[static_cast<size_t>(r)];
    if (r == rank_) continue;
    if (!word.failure.empty()) return quote(r);
    if (word.left && is_collective(call.is.kind) && *word.left <= call.is.sequence)
      return finished(call, r, word);
    if (word.silent()) mute.push_back(r);
  }
  if (mute.empty()) return {};
  return cat(describe(call), ": ", list_of(mute), mute.size() == 1 ? " gives" : " give",
             " no sign of life, and ", name(rank_), " waits for ", list_of(peers),
             peers.size() == 1 ? ", which waits too" : ", which wait too");
}

// Names who may be the reason for the others' silence.
std::string_view Diagnosis::no_store() const {
  return store_mute_
             ? "; nor does the store answer, which the run's rank 0 keeps unless the program "
               "has made it elsewhere"
             : "";
}

std::string Diagnosis::lost(const Call& call, int peer) {
  const std::vector<Word> words = gather(call, peer);
  if (auto text = explained(call, words, std::span(&peer, 1))) return *text;
  const Word& word = words[static_cast<size_t>(peer)];
  // Without a store nobody knows whether it only suffered from another rank and left word of that.
  if (word.silent() && !store_mute_)
    return cat(describe(call), ": ", name(peer), " died; its connection to ", name(rank_),
               " ended without a word");
  if (word.silent())
    return cat(describe(call), ": the connection of ", name(peer), " to ", name(rank_), " ended",
               no_store());
  return cat(describe(call), ": ", name(peer), " ended its connection to ", name(rank_),
             " while in ", word.call);
}

std::string Diagnosis::silent(const Call& call, std::span<const int> peers) {
  const std::vector<Word> words = gather(call, -1);
  if (auto text = explained(call, words, peers)) return *text;
  std::vector<int> mute;
  std::string others;
  for (int r : peers) {
    const Word& word = words[static_cast<size_t>(r)];
    if (word.silent())
      mute.push_back(r);
    else
      others += cat(others.empty() ? "; " : ", ", name(r), " is in ", word.call);
  }
  const std::span<const int> named = mute.empty() ? peers : std::span<const int>(mute);
  return cat(describe(call), ": ", name(rank_), " waited ", call.timeout.count(), " ms for ",
             list_of(named), ", got nothing", others, no_store());
}

std::string Diagnosis::mismatch(const Call& call) { return list(call, gather(call, -1)); }

std::optional<std::string> Diagnosis::reason(const Call& call) noexcept {
  waits(call);
  try {
    std::vector<Word> words;
    for (int r = 0; r < size_; ++r) words.push_back(read(r));
    const auto count = [&](auto&& holds) {
      return std::count_if(words.begin(), words.end(), holds);
    };
    if (count([&](const Word& word) { return word.is && differ(*word.is, call.is); }) > 0) {
      const bool all = count([](const Word& word) { return word.silent(); }) == 0;
      if (all || std::exchange(differs_, true)) return list(call, words);
      return {};
    }
    for (int r = 0; r < size_; ++r) {
      const Word& word = words[static_cast<size_t>(r)];
      if (!word.left || !is_collective(call.is.kind) || *word.left > call.is.sequence) continue;
      return word.failure.empty() ? finished(call, r, word)
                                  : cat(describe(call), ": ", word.failure);
    }
  } catch (...) {  // a store that is gone explains nothing
  }
  return {};
}

std::string Diagnosis::list(const Call& call, const std::vector<Word>& words) const {
  std::string out = cat(describe(call), ": all ranks must give the same call, got in the group '",
                        options_.name, "'");
  for (int r = 0; r < size_; ++r) {
    const Word& word = words[static_cast<size_t>(r)];
    out += cat(r == 0 ? ": " : "; ", name(r), ": ");
    if (word.is)
      out += word.call;
    else if (word.left)
      out += cat("finished after ", *word.left, " collectives");
    else
      out += "no call yet";
  }
  return out;
}

}  // namespace cairn::dist
