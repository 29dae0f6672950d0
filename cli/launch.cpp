// `cairn launch`: the workers of a run on this host.
// Invariant: workers' lines are written whole, what they wrote to standard error goes there; what
// the launcher itself says goes to standard error.
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>

#include "cairn/dist/host_list.h"
#include "cairn/dist/launcher.h"
#include "cairn/tensor/error.h"
#include "cli/verbs.h"

namespace cairn::cli {
namespace {

// Standard output may be closed before the run ends (`| head`): the run goes on without it.
void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t wrote = write(fd, text.data(), text.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return;
    text.remove_prefix(static_cast<size_t>(wrote));
  }
}

}  // namespace

int launch(const LaunchVerb& verb) {
  signal(SIGPIPE, SIG_IGN);
  dist::LaunchOptions options;
  options.workers = verb.workers;
  options.program = verb.program;
  if (!verb.hosts.empty()) options.hosts = dist::expand_hosts(verb.hosts);
  options.node_rank = verb.rank;
  options.master_address = verb.master_address;
  options.master_port = verb.master_port;
  options.on_line = [&](const dist::OutputLine& line) {
    const std::string prefix = verb.prefix ? cat("[", line.rank, "] ") : "";
    write_all(line.error ? STDERR_FILENO : STDOUT_FILENO, cat(prefix, line.text, "\n"));
  };
  const dist::LaunchResult result = dist::launch(options);
  const std::string text = result.text();
  if (!text.empty()) write_all(STDERR_FILENO, "cairn launch: " + text);
  return result.exit_status;
}

}  // namespace cairn::cli
