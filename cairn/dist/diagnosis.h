// Diagnosis: what went wrong between ranks, told to each other through the store.
// Invariant: a rank leaves word before it lets its peers feel that something is wrong, so that all
// of them come to the same sentence; nothing here waits longer than kGather, nor for a store that
// has not answered within kAnswer (kPatience).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

class Diagnosis {
 public:
  // How long the words of the others are waited for.
  static constexpr Milliseconds kGather{500};
  // The same for one whose connection ended without any word. It would have left one before.
  static constexpr Milliseconds kMute{100};
  // How long the store is waited for, whose process may be the one that hangs.
  static constexpr Milliseconds kAnswer{250};
  // The same for is_past(), where a run that goes well depends on the answer.
  static constexpr Milliseconds kPatience{2000};

  explicit Diagnosis(const GroupOptions& options);

  // Leaves word of the call that this rank is in. To be called before its connections are closed
  // or its peers are woken because of a failure.
  void waits(const Call& call) noexcept;
  // Takes that word back, as the call is done after all.
  void waits_no_more() noexcept;
  // Leaves word that this rank failed in this call; `text` is its own error. The first word of an
  // end stands.
  void failed(const Call& call, std::string_view text) noexcept;
  // Leaves word of the end after so many collectives: an orderly one, or a failure where `why` says
  // so or an exception is on its way.
  void left(uint64_t calls, std::string_view why = {}) noexcept;
  // Whether `peer` said that it is past this call: let go of the group, or in trouble with a later
  // one. What it owed to this call is then on the way.
  bool is_past(const Call& call, int peer) noexcept;

  // Sentences for CommError. Each says which call this rank is in, then gathers the others' words.
  // Its connection ended: it gave another call, failed ("rank 1 failed in …: …"), left ("rank 1
  // finished after 41 collectives, rank 0 waits in all_reduce #41 …") or died.
  std::string lost(const Call& call, int peer);
  // Nothing came from these until the deadline.
  std::string silent(const Call& call, std::span<const int> peers);
  // What every rank gave.
  std::string mismatch(const Call& call);
  // For who waits where no peer can be felt, and looks now and then: why nobody answers, where the
  // others' words say so already: other calls in its place, or an end before it. Who has no word
  // yet when calls turn out to differ has time until the next look.
  std::optional<std::string> reason(const Call& call) noexcept;

 private:
  // What one rank said.
  struct Word {
    std::optional<CallShape> is;   // the call it is in
    std::string call;              // the same in words
    std::string failure;           // "rank 1 failed in …: …", or of the rank it suffered from
    std::optional<uint64_t> left;  // after so many calls, all of which it has done its part of

    bool ended() const { return left || !failure.empty(); }
    bool silent() const { return !is && !ended(); }
  };

  std::string key(std::string_view what, int rank) const;
  void tell(const std::string& key, std::string_view word);
  std::optional<std::string> ask(const std::string& key, Milliseconds at_most);
  Word read(int rank, Milliseconds at_most = kAnswer);
  // Reads until every rank said something; where `until` is a rank, until that one said how it
  // ended, or until calls turn out to differ and every rank said something.
  std::vector<Word> gather(const Call& call, int until) noexcept;
  // The sentence, where another rank's word explains why `peers` do not answer.
  std::optional<std::string> explained(const Call& call, const std::vector<Word>& words,
                                       std::span<const int> peers);
  std::string finished(const Call& call, int rank, const Word& word) const;
  std::string_view no_store() const;
  std::string list(const Call& call, const std::vector<Word>& words) const;

  // Calls and ranks as errors name them: "rank 3", "ranks 3, 4".
  std::string describe(const Call& call) const { return options_.describe(call); }
  std::string name(int rank) const { return cat("rank ", options_.name_of(rank)); }
  std::string list_of(std::span<const int> ranks) const;

  const GroupOptions options_;
  const int rank_, size_;
  bool ended_ = false;
  bool differs_ = false;     // reason() has seen another call
  bool store_mute_ = false;  // it left the last word or question unanswered
  std::string quoted_;       // the failure of another rank that this one suffers from
};

}  // namespace cairn::dist
