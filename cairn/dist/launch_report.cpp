// What a user reads of a run that went wrong: LaunchResult::text().
#include <signal.h>

#include <algorithm>
#include <cstdio>

#include "cairn/dist/launcher.h"
#include "cairn/dist/worker_output.h"
#include "cairn/tensor/error.h"

namespace cairn::dist {
namespace {

constexpr size_t kRanksNamed = 16;
// A line that holds so many bytes of an error is about that error.
constexpr size_t kTelling = 8;

// "rank 3", "ranks 1, 3".
std::string list_of(const std::vector<int>& ranks) {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  const size_t named = std::min(ranks.size(), kRanksNamed);
  for (size_t i = 0; i < named; ++i) out += cat(i == 0 ? "" : ", ", ranks[i]);
  return named == ranks.size() ? out : cat(out, " and ", ranks.size() - named, " more");
}

// An error is a sentence in its first line, and maybe a table or the like in those after it.
std::string sentence_of(const std::string& error) { return error.substr(0, error.find('\n')); }

std::vector<std::string> lines_after(const std::string& error) {
  std::vector<std::string> out;
  for (size_t end = error.find('\n'); end != std::string::npos;) {
    const size_t begin = end + 1;
    end = error.find('\n', begin);
    const std::string line = error.substr(begin, end == std::string::npos ? end : end - begin);
    if (!line.empty()) out.push_back(line);
  }
  return out;
}

// The same for ranks that say the same of themselves, however they ended then.
std::string without_own_rank(const WorkerFailure& failure) {
  const std::string own = cat("rank ", failure.rank);
  std::string text = failure.error.empty() ? failure.reason() : sentence_of(failure.error);
  const auto is_digit = [&](size_t at) {
    return at < text.size() && text[at] >= '0' && text[at] <= '9';
  };
  for (size_t at = text.find(own); at != std::string::npos; at = text.find(own, at + 1))
    if (!is_digit(at + own.size())) text.replace(at, own.size(), "rank #");
  return text;
}

// One line for each failure, those alike in one with the first of them; and after the first failure
// what came before it.
std::string sentences(const std::vector<WorkerFailure>& failures, const std::string& before) {
  struct Alike {
    const WorkerFailure* first;
    std::string text;
    std::vector<int> more = {};
  };
  std::vector<Alike> found;
  for (const WorkerFailure& failure : failures) {
    const bool first = found.empty();
    // What was told to end and had no error of its own tells nothing.
    if (!first && failure.was_told && failure.error.empty()) continue;
    const std::string text = without_own_rank(failure);
    const auto same = std::find_if(found.begin(), found.end(), [&](const Alike& alike) {
      return alike.text == text &&
             (alike.first == &failures.front() || alike.first->consequence == failure.consequence);
    });
    if (same == found.end())
      found.push_back({&failure, text});
    else
      same->more.push_back(failure.rank);
  }
  std::string out;
  for (Alike& alike : found) {
    const bool first = &alike == &found.front();
    std::sort(alike.more.begin(), alike.more.end());
    out +=
        cat(first                      ? ""
            : alike.first->consequence ? "in consequence, "
                                       : "then ",
            alike.first->reason(), "\n",
            alike.more.empty() ? "" : cat(list_of(alike.more), " likewise\n"), first ? before : "");
  }
  return out;
}

std::string left_before(const std::vector<EarlyEnd>& ends) {
  if (ends.empty()) return "";
  std::vector<int> ranks;
  double longest = 0;
  for (const EarlyEnd& end : ends) {
    ranks.push_back(end.rank);
    longest = std::max(longest, end.seconds);
  }
  char time[32];
  std::snprintf(time, sizeof time, "%.1f s", longest);
  return cat(list_of(ranks), " had ended with exit status 0, ",
             longest < 0.05 ? std::string("just") : cat(ranks.size() > 1 ? "up to " : "", time),
             " before\n");
}

// Those that did not end by themselves when they were told to.
std::string ended_by_force(const std::vector<WorkerFailure>& failures) {
  std::string out;
  for (const bool stopped : {true, false})
    for (const bool killed : {false, true}) {
      std::vector<int> ranks;
      for (const WorkerFailure& failure : failures)
        if (failure.was_stopped == stopped && failure.was_killed == killed)
          ranks.push_back(failure.rank);
      if (ranks.empty() || (!stopped && !killed)) continue;
      std::sort(ranks.begin(), ranks.end());
      const char* were = ranks.size() == 1 ? "was" : "were";
      out +=
          cat(list_of(ranks), " ",
              !stopped  ? cat("did not end and ", were, " killed")
              : !killed ? cat(were, " stopped, as by SIGSTOP, and ", were, " ended")
                        : cat(were, " stopped, as by SIGSTOP, did not end and ", were, " killed"),
              "\n");
    }
  return out;
}

std::string indented(const std::string& title, const std::vector<std::string>& lines) {
  if (lines.empty()) return "";
  std::string out = title;
  for (const std::string& line : lines) out += cat("  ", line, "\n");
  return out;
}

// What there is to read of the first failure besides its sentence: the rest of its error, unless
// the worker wrote that itself, and its last lines that are not that error.
std::string details(const WorkerFailure& failure) {
  std::vector<std::string> rest = lines_after(failure.error), last;
  const auto is_of_error = [&](const std::string& line) {
    const std::string sentence = sentence_of(failure.error);
    // Lines that are cut short, as last lines are, count too.
    const auto holds = [&](const std::string& part) {
      return line == part ||
             (part.size() >= kTelling &&
              line.find(part.substr(0, LastLines::kLineBytes / 2)) != std::string::npos);
    };
    return holds(sentence) || std::any_of(rest.begin(), rest.end(), holds);
  };
  for (const std::string& line : failure.last_lines)
    if (!line.empty() && !is_of_error(line)) last.push_back(line);
  const bool written =
      !rest.empty() && std::any_of(failure.last_lines.begin(), failure.last_lines.end(),
                                   [&](const std::string& line) {
                                     return line.find(rest.back()) != std::string::npos;
                                   });
  return (written ? "" : indented("", rest)) +
         indented(cat("the last lines of rank ", failure.rank, ":\n"), last);
}

}  // namespace

std::string WorkerFailure::reason() const {
  const std::string who = cat("rank ", rank, " "), sentence = sentence_of(error);
  if (was_told) return error.empty() ? who + "was ended" : cat(who, "failed: ", sentence);
  if (!error.empty()) return cat(who, describe(status), ": ", sentence);
  // What the C++ library says of an exception that nobody caught.
  const bool memory = status.signal == SIGABRT && !last_lines.empty() &&
                      last_lines.back().find("std::bad_alloc") != std::string::npos;
  return cat(who, describe(status), memory ? ": out of memory (std::bad_alloc)" : "");
}

std::string LaunchResult::text() const {
  std::string out;
  if (interrupted_by != 0) {
    out = cat("interrupted by ", signal_name(interrupted_by), "\n", ended_by_force(failures));
  } else if (!failures.empty()) {
    out = cat(sentences(failures, left_before(left_early)), ended_by_force(failures),
              details(failures.front()));
  }
  return output_error.empty() ? out : cat(out, output_error, "\n");
}

}  // namespace cairn::dist
