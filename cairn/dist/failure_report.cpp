// What a worker leaves for its launcher.
#include "cairn/dist/failure_report.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <system_error>

#include "cairn/dist/environment.h"
#include "cairn/dist/process_group.h"

namespace cairn::dist {
namespace {

// First line: the kind and the moment in nanoseconds; then the text.
const std::string kCause = "cause", kConsequence = "consequence";

void write_report(const std::string& path, const std::exception& error, bool consequence) {
  if (std::filesystem::exists(path)) return;
  const std::string whole = path + ".new";
  std::ofstream out(whole, std::ios::binary);
  const bool memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  out << (consequence ? kConsequence : kCause) << ' '
      << std::chrono::steady_clock::now().time_since_epoch().count() << '\n'
      << (memory ? "out of memory (std::bad_alloc)" : error.what());
  out.close();
  if (out) std::filesystem::rename(whole, path);
}

}  // namespace

bool is_consequence(const std::exception& error) {
  return dynamic_cast<const CommError*>(&error) != nullptr &&
         dynamic_cast<const TimeoutError*>(&error) == nullptr;
}

void report_failure(const std::exception& error) noexcept {
  report_failure(error, is_consequence(error));
}

void report_failure(const std::exception& error, bool consequence) noexcept {
  try {
    const auto path = process_variables()(kErrorFileVariable);
    if (path && !path->empty()) write_report(*path, error, consequence);
  } catch (...) {
    // The launcher still tells the exit status and the last lines.
  }
}

std::optional<FailureReport> read_failure_report(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string kind;
  std::chrono::steady_clock::rep at = 0;
  if (!(in >> kind >> at) || in.get() != '\n') return std::nullopt;
  FailureReport report;
  report.consequence = kind == kConsequence;
  report.at = std::chrono::steady_clock::time_point(std::chrono::steady_clock::duration(at));
  report.text.assign(std::istreambuf_iterator<char>(in), {});
  return report;
}

}  // namespace cairn::dist
