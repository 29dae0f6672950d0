// What a worker leaves for its launcher when it fails: its error, and whether another rank's
// failure made it fail.
// Invariant: the file is there whole or not at all.
#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <string>

namespace cairn::dist {

// A CommError that is no time-out: a peer or its connection was lost, so that the cause lies with
// somebody else.
bool is_consequence(const std::exception& error);

// Writes the file that CAIRN_ERROR_FILE names, unless this process has already written one; does
// nothing where the variable is not set. To be called with the error that ends the process, before
// what holds process groups is destroyed if that can be, so that no other rank's report is earlier.
void report_failure(const std::exception& error) noexcept;
void report_failure(const std::exception& error, bool consequence) noexcept;

struct FailureReport {
  bool consequence = false;
  std::chrono::steady_clock::time_point at;  // one clock for all processes of a host
  std::string text;
};
// Nothing where there is no whole report.
std::optional<FailureReport> read_failure_report(const std::string& path);

}  // namespace cairn::dist
