// The `cairn` program: reads the command line and runs one verb.
// Invariant: status 0 is success, 1 a failure (of `launch`: that of its workers), 2 a mistake in
// the command line; each complaint is one sentence on standard error.
#include <CLI/CLI.hpp>
#include <exception>
#include <functional>
#include <iostream>

#include "cli/verbs.h"

namespace {

// Of options that look like the launcher's but are the program's.
constexpr const char* kProgramHint =
    "; the program and its arguments come after --, as in: cairn launch --workers 2 -- ls -l";

// Else every host would take itself for the only one.
std::string complain_of_no_hosts(const std::string& hosts) {
  return hosts.empty() ? "must be a list of hosts, got nothing; is a variable not set?" : "";
}

CLI::App* add_launch(CLI::App& app, cairn::cli::LaunchVerb& verb) {
  auto* launch = app.add_subcommand(
      "launch",
      "Runs a program as several workers and ends them together: launch --workers 4 -- "
      "./program …");
  launch->add_option("--workers", verb.workers, "Workers on this host")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  launch
      ->add_option("--hosts", verb.hosts,
                   "All hosts of the run, as in node[1-4],other; run the same command on each, "
                   "with the same CAIRN_SECRET in its environment and its own --rank")
      ->check(CLI::Validator(complain_of_no_hosts, ""));
  launch->add_option("--rank", verb.rank, "Of this host among --hosts, from 0; needed for several");
  launch->add_option("--master-address", verb.master_address,
                     "Of the host of worker 0; else the first of --hosts");
  launch->add_option("--master-port", verb.master_port,
                     "Where worker 0 listens; else a free port, or 29440 with --hosts");
  launch->add_flag("!--no-prefix", verb.prefix,
                   "Write lines without the worker's rank before them");
  launch->add_option("program", verb.program, "The program and its arguments, after --")
      ->required();
  launch->footer(
      "Status: 0 when all workers end well; else that of the worker that failed first (128 + n "
      "after signal n), 130 after Ctrl-C, 143 after SIGTERM, 1 when the run cannot start or what "
      "workers wrote is lost, as on a full disk, 2 for mistakes in the command line. Where the "
      "reader of a pipe has gone, as with | head, the run goes on, its status stays that of the "
      "workers, and a last line tells of it. Ctrl-C is passed on to the workers, which then have "
      "4 s to end; a second one ends them at once.");
  return launch;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace cairn::cli;
  CLI::App app{
      "Cairn, a deep-learning framework: what it is, what this machine offers, and whether "
      "its operators are right.",
      "cairn"};
  app.require_subcommand(1);
  app.set_version_flag("--version", CAIRN_VERSION);
  std::function<int()> verb;

  app.add_subcommand("info", "Version, compiler and what was built")->callback([&] {
    verb = info;
  });
  app.add_subcommand("doctor", "What this machine offers")->callback([&] { verb = doctor; });

  CheckOptions options;
  auto* check = app.add_subcommand(
      "check", "Compares operators with double-precision references and prints a table");
  check->add_option("op", options.ops, "Operators; all when none is given");
  check->add_option("--dtype", options.dtypes, "Only these: f64, f32, bf16, …")->delimiter(',');
  check->add_option("--device", options.device, "Where to run")->capture_default_str();
  check->add_option("--target", options.target,
                    "Instruction set of the kernels, as `cairn doctor` names them");
  check->add_flag("!--no-cache", options.caching,
                  "Take every block of device memory from the driver, as memory checkers want it");
  check->add_flag("--list", options.list, "Only list the operators");
  check->callback([&] { verb = [&] { return check_ops(options); }; });

  LaunchVerb launched;
  add_launch(app, launched)->callback([&] { verb = [&] { return launch(launched); }; });

  try {
    app.parse(argc, argv);
    return verb();
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help and --version
  } catch (const CLI::ExtrasError& error) {
    std::cerr << "cairn: " << error.what() << (app.got_subcommand("launch") ? kProgramHint : "")
              << "\n";
    return 2;
  } catch (const CLI::Error& error) {
    std::cerr << "cairn: " << error.what() << "\n";
    return 2;
  } catch (const UsageError& error) {
    std::cerr << "cairn: " << error.text << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "cairn: " << error.what() << "\n";
    return 1;
  }
}
