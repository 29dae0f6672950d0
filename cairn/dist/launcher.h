// launch(): starts the workers of a run on this host, shows what they write, and ends them
// together. Invariant: when launch() returns or its process dies, however it dies, no worker is
// left.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/dist/child.h"
#include "cairn/dist/deadline.h"

namespace cairn::dist {

struct OutputLine {
  int rank;
  bool error;             // written to standard error
  std::string_view text;  // without its line feed
};

struct LaunchOptions {
  int workers = 1;                        // on this host
  std::vector<std::string> program = {};  // and its arguments

  // Of several hosts: the same command runs on each, with its own node_rank. Then CAIRN_SECRET must
  // be set to the same value on all. "node[1-4],other" is written out by expand_hosts().
  std::vector<std::string> hosts = {};
  std::optional<int> node_rank = {};  // must be given where there are several hosts
  std::string master_address = {};    // empty: the first host; on one host 127.0.0.1
  int master_port = 0;                // 0: on one host a free one, on several kHostsPort

  // More variables of the workers ("NAME=value"); they stand above those of this process.
  std::vector<std::string> environment = {};
  // Gets each line and returns what to write of it to this process's standard output (error, where
  // it was written there), with its line feed; "" for nothing. It must not wait for anything:
  // launch() writes, and looks after the workers whether that is read or not. While nobody reads,
  // the workers wait as at any pipe that is full. One who has gone (`| head`) changes nothing for
  // them, nor does a full disk; both are told of at the end.
  std::function<std::string(const OutputLine&)> show = {};

  // SIGINT and SIGTERM are the launcher's while it runs: the first is passed on to the workers,
  // which have `interrupt_grace` to end; a second one ends them at once. They must be blocked in
  // other threads of this process, so a program calls launch() before it starts any.
  Milliseconds interrupt_grace = std::chrono::milliseconds(4000);
  // After a failure the other workers get SIGTERM, and SIGKILL this much later.
  Milliseconds failure_grace = std::chrono::milliseconds(1000);
  // When all workers have ended, lines may still wait for their reader. They are given up when it
  // takes nothing for so long (after an interrupt: for failure_grace), or at a signal.
  Milliseconds output_grace = std::chrono::hours(1);

  static constexpr int kHostsPort = 29440;
};

// How a worker ended that did not end well.
struct WorkerFailure {
  int rank = 0;
  ExitStatus status;
  std::string error;  // what it left by report_failure(), or ""
  // Another rank's failure was the reason.
  bool consequence = false;
  // It ended after the launcher had told it to, so that `status` says nothing of its own.
  bool was_told = false;
  // It stood still (SIGSTOP, a debugger) when the launcher told it to.
  bool was_stopped = false;
  // It did not end in time after that, and the launcher killed it.
  bool was_killed = false;
  std::vector<std::string> last_lines;

  // "rank 1 was killed by signal 9 (SIGKILL), which …", "rank 0 ended with exit status 1: " and the
  // first line of its error.
  std::string reason() const;
};

// A worker that had ended with status 0 when others failed, which may be why they did.
struct EarlyEnd {
  int rank = 0;
  double seconds = 0;  // before the first failure
};

struct LaunchResult {
  // 0; or 1 where all workers ended well but a file or terminal did not take what they wrote (of a
  // pipe whose reader has gone or stands still only output_error tells, as of `tee -p`: who reads
  // may have seen enough); or of the first failure: its status, or 128 + its signal (1 where the
  // launcher had to end it after its report); 130 after SIGINT, 143 after SIGTERM, whatever the
  // workers returned.
  int exit_status = 0;
  int interrupted_by = 0;  // SIGINT, SIGTERM, SIGHUP or 0
  // The failure that began it, and then those that followed from it.
  std::vector<WorkerFailure> failures = {};
  std::vector<EarlyEnd> left_early = {};
  // Which lines were lost and why, one sentence a line, or "".
  std::string output_error = {};
  // What a user is to read: the first failure's sentence and who had left before it; a line for
  // each that followed, those alike in one; who had to be ended by force; and last what the first
  // failure has written and reported besides. Tables that a worker's error ends with are left out
  // where the worker has written them itself, and those of the others always. "" where all went
  // well.
  std::string text() const;
};

// Error where the options are wrong or the program cannot run. The workers get RANK, LOCAL_RANK,
// WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK, GROUP_WORLD_SIZE, NODE_RANK, MASTER_ADDR, MASTER_PORT;
// CAIRN_LAUNCH, CAIRN_RUN_ID, CAIRN_SECRET (random on one host; CAIRN_SECRET where it is set),
// CAIRN_ERROR_FILE; and CAIRN_NUM_THREADS = processors / workers where it is not set. Their input
// is empty.
LaunchResult launch(const LaunchOptions& options);

}  // namespace cairn::dist
