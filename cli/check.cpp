// `cairn check`: runs the op table and prints one row per operator and dtype.
#include <algorithm>
#include <cstdio>
#include <iostream>

#include "cairn/kernels/target.h"
#include "cairn/tensor/cuda.h"
#include "check/op_table.h"
#include "cli/verbs.h"

namespace cairn::cli {
namespace {

using check_table::Entry;
using check_table::Verdict;

// Levenshtein's distance.
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

// "'a', 'b' or 'c'": the known names most like `name`.
std::string nearest(const std::string& name, std::vector<std::string> known) {
  const auto score = [&](const std::string& k) {
    // A known name that contains what was typed ("pool") is nearer than its length says.
    return k.find(name) != std::string::npos ? size_t{1} : distance(name, k);
  };
  std::stable_sort(known.begin(), known.end(),
                   [&](const std::string& a, const std::string& b) { return score(a) < score(b); });
  known.resize(std::min<size_t>(known.size(), 3));
  std::string out;
  for (size_t i = 0; i < known.size(); ++i)
    out += (i == 0 ? "'" : i + 1 == known.size() ? " or '" : ", '") + known[i] + "'";
  return out;
}

std::vector<const Entry*> chosen_entries(const CheckOptions& options) {
  std::vector<std::string> names;
  for (const Entry& e : check_table::entries()) names.push_back(e.op);
  for (const auto& op : options.ops)
    if (std::find(names.begin(), names.end(), op) == names.end())
      throw UsageError{cat("check: op must be one of the operators of `cairn check --list`, got '",
                           op, "'; the nearest are ", nearest(op, names))};
  std::vector<const Entry*> chosen;
  for (const Entry& e : check_table::entries())
    if (options.ops.empty() ||
        std::find(options.ops.begin(), options.ops.end(), e.op) != options.ops.end())
      chosen.push_back(&e);
  return chosen;
}

std::vector<DType> wanted_dtypes(const CheckOptions& options) {
  std::vector<DType> dtypes;
  for (const auto& name : options.dtypes) {
    try {
      dtypes.push_back(parse_dtype(name));
    } catch (const Error& error) {
      throw UsageError{cat("check: ", error.what())};
    }
  }
  return dtypes;
}

Device wanted_device(const CheckOptions& options) {
  Device device;
  try {
    device = Device(options.device);
  } catch (const Error& error) {
    throw UsageError{cat("check: ", error.what())};
  }
  const int there = cuda::device_count();
  if (device.type == DeviceType::cuda) {
    check(there > 0, "check: device must be cpu without a usable GPU, got ", options.device, "; ",
          cuda::unavailable());
    check(device.index < there, "check: device must be one of the ", there,
          " GPUs that are there, got ", options.device);
  }
  return device;
}

void set_target(const CheckOptions& options) {
  try {
    kernels::set_target(options.target);
  } catch (const Error& error) {
    throw UsageError{cat("check: ", error.what())};
  }
}

void print_row(const std::string& op, const std::string& dtype, const std::string& device,
               const std::string& cases, const std::string& error, const std::string& allowed,
               const std::string& gradient, const std::string& verdict) {
  std::printf("%-34s %-5s %-6s %5s  %9s  %9s  %9s  %s\n", op.c_str(), dtype.c_str(), device.c_str(),
              cases.c_str(), error.c_str(), allowed.c_str(), gradient.c_str(), verdict.c_str());
  std::fflush(stdout);
}

std::string scientific(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2e", value);
  return text;
}

void print_list(const std::vector<const Entry*>& entries) {
  for (const Entry* e : entries) {
    std::string dtypes;
    for (DType d : e->dtypes) dtypes += cat(" ", d);
    std::printf("%-34s %-12s%s\n", e->op.c_str(), e->family.c_str(), dtypes.c_str());
  }
}

}  // namespace

int check_ops(const CheckOptions& options) {
  const auto entries = chosen_entries(options);
  const auto dtypes = wanted_dtypes(options);
  const Device device = wanted_device(options);
  set_target(options);
  cuda::set_caching(options.caching);
  if (options.list) {
    print_list(entries);
    return 0;
  }

  std::string device_text;
  append_text(device_text, device);
  std::vector<std::string> failures;
  int rows = 0;
  int failed = 0;
  for (const Entry* e : entries) {
    for (DType dtype : e->dtypes) {
      if (!dtypes.empty() && std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end())
        continue;
      const Verdict v = check_table::run(*e, dtype, device);
      if (rows++ == 0)
        print_row("op", "dtype", "device", "cases", "error", "tolerance", "gradient", "verdict");
      print_row(v.op, cat(dtype), device_text, cat(v.cases), scientific(v.error),
                scientific(v.allowed), scientific(v.gradient_error), v.passed() ? "ok" : "FAILED");
      failed += v.passed() ? 0 : 1;
      failures.insert(failures.end(), v.failures.begin(), v.failures.end());
    }
  }
  if (rows == 0) throw UsageError{"check: these operators have no case in that dtype"};
  for (const auto& text : failures) std::printf("%s\n", text.c_str());
  if (!options.target.empty()) std::printf("kernels: %s\n", kernels::current_target().c_str());
  std::printf("%d of %d rows passed\n", rows - failed, rows);
  return failed == 0 ? 0 : 1;
}

}  // namespace cairn::cli
