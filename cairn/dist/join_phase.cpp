// JoinPhase.
#include "cairn/dist/join_phase.h"

#include <algorithm>

namespace cairn::dist {

std::vector<JoinPhase::Answer> JoinPhase::join(Member member) {
  if (!failed_.empty()) return {{member.owner, member.request, failed_}};
  if (world_size_ == 0) {
    world_size_ = member.world_size;
    said_by_ = member.rank;
  }
  std::string text = refusal(member);
  if (!text.empty()) {
    // A run that is under way is not disturbed by one who does not belong to it.
    if (complete_) return {{member.owner, member.request, std::move(text)}};
    failed_ = text;
    std::vector<Answer> out = answer_all(text);
    out.push_back({member.owner, member.request, std::move(text)});
    return out;
  }
  const Answer alone{member.owner, member.request, {}};
  members_.emplace(member.rank, std::move(member));
  if (complete_) return {alone};
  complete_ = members_.size() == static_cast<size_t>(world_size_);
  return complete_ ? answer_all({}) : std::vector<Answer>{};
}

std::string JoinPhase::refusal(const Member& member) const {
  if (member.world_size != world_size_)
    return cat("tcp_store: world_size must be ", world_size_, " as on rank ", said_by_, ", got ",
               member.world_size, " on rank ", member.rank);
  if (member.rank < 0 || member.rank >= world_size_)
    return cat("tcp_store: rank must be below the world size ", world_size_, ", got ", member.rank);
  const auto same = members_.find(member.rank);
  if (same == members_.end()) return {};
  return cat("tcp_store: every rank must join once, got rank ", member.rank, " from ",
             same->second.from, " and from ", member.from);
}

void JoinPhase::leave(uint64_t owner) {
  std::erase_if(members_, [&](const auto& entry) { return entry.second.owner == owner; });
}

std::vector<JoinPhase::Answer> JoinPhase::expired(std::string_view hint) {
  if (complete_ || !failed_.empty()) return {};
  const auto late = std::find_if(members_.begin(), members_.end(),
                                 [](const auto& entry) { return entry.second.deadline.expired(); });
  if (late == members_.end()) return {};
  failed_ = cat("tcp_store: all ranks must join within ", in_words(late->second.timeout), ", got ",
                members_.size(), "/", world_size_, " joined, missing [", missing(), "]", hint);
  return answer_all(failed_);
}

std::optional<Deadline> JoinPhase::next() const {
  std::optional<Deadline> out;
  if (complete_ || !failed_.empty()) return out;
  for (const auto& [rank, member] : members_)
    if (!out || member.deadline.at() < out->at()) out = member.deadline;
  return out;
}

std::vector<JoinPhase::Answer> JoinPhase::answer_all(const std::string& text) {
  std::vector<Answer> out;
  for (const auto& [rank, member] : members_) out.push_back({member.owner, member.request, text});
  return out;
}

std::string JoinPhase::missing() const {
  constexpr size_t kNamed = 32;
  std::string out;
  size_t count = 0;
  for (int rank = 0; rank < world_size_; ++rank) {
    if (members_.count(rank) != 0) continue;
    if (++count <= kNamed) out += cat(count == 1 ? "" : ", ", rank);
  }
  return count > kNamed ? cat(out, " and ", count - kNamed, " more") : out;
}

}  // namespace cairn::dist
