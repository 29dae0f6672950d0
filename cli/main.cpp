// The `cairn` program: reads the command line and runs one verb.
// Invariant: status 0 is success, 1 a failure, 2 a mistake in the command line; each complaint is
// one sentence on standard error.
#include <CLI/CLI.hpp>
#include <exception>
#include <functional>
#include <iostream>

#include "cli/verbs.h"

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

  try {
    app.parse(argc, argv);
    return verb();
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help and --version
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
