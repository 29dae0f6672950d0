// `cairn launch`: the workers of a run on this host.
// Invariant: workers' lines are written whole, what they wrote to standard error goes there; what
// the launcher itself says goes to standard error.
#include <signal.h>
#include <unistd.h>

#include "cairn/dist/host_list.h"
#include "cairn/dist/launcher.h"
#include "cairn/dist/output_queue.h"
#include "cairn/tensor/error.h"
#include "cli/verbs.h"

namespace cairn::cli {
int launch(const LaunchVerb& verb) {
  signal(SIGPIPE, SIG_IGN);
  dist::LaunchOptions options;
  options.workers = verb.workers;
  options.program = verb.program;
  if (!verb.hosts.empty()) options.hosts = dist::expand_hosts(verb.hosts);
  options.node_rank = verb.rank;
  options.master_address = verb.master_address;
  options.master_port = verb.master_port;
  options.show = [&](const dist::OutputLine& line) {
    return cat(verb.prefix ? cat("[", line.rank, "] ") : "", line.text, "\n");
  };
  const dist::LaunchResult result = dist::launch(options);
  if (const std::string text = result.text(); !text.empty()) {
    dist::OutputQueue error(STDERR_FILENO);
    error.add("cairn launch: " + text);
    error.drain(
        dist::Deadline(result.interrupted_by != 0 ? options.failure_grace : options.output_grace));
  }
  return result.exit_status;
}

}  // namespace cairn::cli
