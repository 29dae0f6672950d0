// The verbs of the `cairn` program. Each returns the exit status; Error means status 1.
// Invariant: results go to standard output, complaints to standard error.
#pragma once

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
  bool list = false;
};

int info();
int doctor();
int check_ops(const CheckOptions& options);

// "GCC 12.2.0, Release"
std::string compiler_and_build();
// The instruction sets that kernels were compiled for and this processor has, best first.
std::vector<std::string> usable_targets();
// All that kernels were compiled for, best first.
std::vector<std::string> compiled_targets();

// One word and its text, in two columns.
void print_line(const std::string& word, const std::string& text);

}  // namespace cairn::cli
