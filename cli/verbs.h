// The verbs of the `cairn` program. Each returns the exit status; Error means status 1.
// Invariant: results go to standard output, complaints to standard error.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace cairn::cli {

// A mistake in the command line: one sentence, status 2.
struct UsageError {
  std::string text;
};

struct CheckOptions {
  std::vector<std::string> ops;     // empty: all
  std::vector<std::string> dtypes;  // empty: each op's own
  std::string device = "cpu";
  std::string target;  // instruction set of the kernels; empty: the best
  bool list = false;
  bool caching = true;  // of device memory; memory checkers see more without
};

struct LaunchVerb {
  int workers = 1;
  std::string hosts;        // as SLURM writes lists; empty: this host alone
  std::optional<int> rank;  // of this host
  std::string master_address;
  int master_port = 0;
  bool prefix = true;
  std::vector<std::string> program;
};

int info();
int doctor();
int check_ops(const CheckOptions& options);
// Returns the first failure's status.
int launch(const LaunchVerb& verb);

// "GCC 12.2.0, Release"
std::string compiler_and_build();

// The OpenBLAS that NumPy or a distribution's PyTorch would load here: its version and the kernels
// it chose, with a warning where a processor with these flags could run better ones. Cairn does not
// use it; comparisons with those that do suffer.
void print_openblas(const std::string& cpu_flags);

// One word and its text, in two columns.
void print_line(const std::string& word, const std::string& text);

}  // namespace cairn::cli
