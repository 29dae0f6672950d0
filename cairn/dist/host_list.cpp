// Lists of hosts and of tasks.
#include "cairn/dist/host_list.h"

#include "cairn/dist/variables.h"
#include "cairn/tensor/error.h"

namespace cairn::dist {
namespace {

constexpr size_t kMostHosts = 65536;

[[noreturn]] void wrong_hosts(std::string_view list) {
  fail("hosts: list must be like 'node[1-4,7],other' with at most ", kMostHosts, " hosts, got '",
       list, "'");
}

// Cuts at the commas that stand outside of brackets.
std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> out;
  size_t start = 0;
  int depth = 0;
  for (size_t i = 0; i <= list.size(); ++i) {
    if (i < list.size() && list[i] == '[') ++depth;
    if (i < list.size() && list[i] == ']') --depth;
    if (i < list.size() && (list[i] != ',' || depth > 0)) continue;
    out.push_back(list.substr(start, i - start));
    start = i + 1;
  }
  return out;
}

// "08-10" is 08 09 10: numbers keep the width of the first.
std::vector<std::string> expand_range(std::string_view range, std::string_view list) {
  const size_t dash = range.find('-');
  const std::string_view low = range.substr(0, dash);
  const std::string_view high = dash == std::string_view::npos ? low : range.substr(dash + 1);
  const auto first = parse_number(low, 0, 999'999'999);
  const auto last = parse_number(high, 0, 999'999'999);
  if (!first || !last || *last < *first || static_cast<size_t>(*last - *first) >= kMostHosts)
    wrong_hosts(list);
  std::vector<std::string> out;
  for (int n = *first; n <= *last; ++n) {
    std::string digits = std::to_string(n);
    if (digits.size() < low.size()) digits.insert(0, low.size() - digits.size(), '0');
    out.push_back(std::move(digits));
  }
  return out;
}

// One entry of the list; a name may hold several brackets.
std::vector<std::string> expand_name(std::string_view name, std::string_view list) {
  const size_t open = name.find('[');
  if (open == std::string_view::npos) {
    if (name.empty() || name.find_first_of("] \t\n") != std::string_view::npos) wrong_hosts(list);
    return {std::string(name)};
  }
  const size_t close = name.find(']', open);
  if (close == std::string_view::npos) wrong_hosts(list);
  const std::string_view rest = name.substr(close + 1);
  const std::vector<std::string> ends =
      rest.empty() ? std::vector<std::string>{""} : expand_name(rest, list);
  std::vector<std::string> out;
  for (const std::string_view range : split(name.substr(open + 1, close - open - 1)))
    for (const std::string& number : expand_range(range, list))
      for (const std::string& end : ends) {
        out.push_back(cat(name.substr(0, open), number, end));
        if (out.size() > kMostHosts) wrong_hosts(list);
      }
  return out;
}

}  // namespace

std::vector<std::string> expand_hosts(std::string_view list) {
  std::vector<std::string> out;
  for (const std::string_view name : split(list)) {
    for (std::string& host : expand_name(name, list)) out.push_back(std::move(host));
    if (out.size() > kMostHosts) wrong_hosts(list);
  }
  return out;
}

std::vector<int> expand_counts(std::string_view list) {
  const auto wrong = [&] { fail("tasks: list must be like '2(x3),1', got '", list, "'"); };
  std::vector<int> out;
  for (const std::string_view part : split(list)) {
    const size_t open = part.find("(x");
    const auto count = parse_number(part.substr(0, open), 1, 1 << 20);
    std::optional<int> times = 1;
    if (open != std::string_view::npos) {
      if (part.back() != ')') wrong();
      times = parse_number(part.substr(open + 2, part.size() - open - 3), 1, 1 << 16);
    }
    if (!count || !times || out.size() > kMostHosts) wrong();
    out.insert(out.end(), static_cast<size_t>(*times), *count);
  }
  return out;
}

}  // namespace cairn::dist
