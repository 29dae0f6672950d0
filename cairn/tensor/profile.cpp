// What a Profile tells: rows, the table, the Chrome trace.
// Invariant: a row's calls, times, bytes and FLOPs are sums over the threads' sites; nothing here
// changes a recording.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "cairn/tensor/file.h"
#include "cairn/tensor/profiler_recorder.h"

namespace cairn::profiler {
namespace {

using detail::Event;
using detail::Site;

std::string_view name_of(Kind kind) {
  switch (kind) {
    case Kind::kernel:
      return "kernel";
    case Kind::backward:
      return "backward";
    default:
      return "range";
  }
}

// "f32[8,64,7,7] +f32[64]"
std::string shapes_text(const std::vector<int64_t>& words) {
  std::string out;
  for (size_t i = 0; i < words.size();) {
    const int64_t header = words[i++];
    if (!out.empty()) out += ' ';
    if ((header >> 16 & 1) != 0) out += '+';
    append_text(out, static_cast<DType>(header & 0xff));
    out += '[';
    const auto dims = static_cast<size_t>(header >> 8 & 0xff);
    for (size_t d = 0; d < dims; ++d) out += cat(d == 0 ? "" : ",", words[i++]);
    out += ']';
  }
  return out;
}

double mean_of(const Row& row) { return row.total / static_cast<double>(row.calls); }

// Whether row a comes before row b.
using Before = bool (*)(const Row& a, const Row& b);
Before order_of(const std::string& sort_by) {
  static const std::map<std::string, Before> orders = {
      {"self", [](const Row& a, const Row& b) { return a.self > b.self; }},
      {"total", [](const Row& a, const Row& b) { return a.total > b.total; }},
      {"calls", [](const Row& a, const Row& b) { return a.calls > b.calls; }},
      {"mean", [](const Row& a, const Row& b) { return mean_of(a) > mean_of(b); }},
      {"bytes", [](const Row& a, const Row& b) { return a.bytes > b.bytes; }},
      {"flops", [](const Row& a, const Row& b) { return a.flops > b.flops; }},
      {"name", [](const Row&, const Row&) { return false; }},  // as they come
  };
  const auto found = orders.find(sort_by);
  check(found != orders.end(),
        "profiler: sort_by must be self, total, calls, mean, bytes, flops or name, got '", sort_by,
        "'");
  return found->second;
}

std::string padded(const std::string& text, size_t width) {
  return text.size() < width ? text + std::string(width - text.size(), ' ') : text;
}

// `per` units of `amount`, in 11 columns; "-" for none.
std::string amount_text(double amount, int digits) {
  char text[48];
  std::snprintf(text, sizeof text, "%11.*f", digits, amount);
  return amount == 0 ? "          -" : text;
}

std::string json_text(const std::string& text) {
  using nlohmann::json;
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

// Microseconds with their three decimals, exactly.
std::string microseconds(int64_t ns) {
  char text[32];
  std::snprintf(text, sizeof text, "%lld.%03d", static_cast<long long>(ns / 1000),
                static_cast<int>(ns % 1000));
  return text;
}

// What all events of a site share, behind their times.
std::string site_json(const Site& site, const std::string& name) {
  std::string out = cat(",\"name\":", json_text(name), ",\"cat\":\"", name_of(site.kind), "\"");
  if (site.kind == Kind::kernel) {
    const int64_t calls = std::max<int64_t>(site.calls, 1);  // all of one site work alike
    out += cat(",\"args\":{\"shapes\":\"", shapes_text(site.words),
               "\",\"bytes\":", site.bytes / calls, ",\"flops\":", site.flops / calls, "}");
  }
  return out + "}";
}

}  // namespace

Profile::Profile(const ProfileOptions& options) {
  check(options.max_events >= 0, "profiler: max_events must be at least 0, got ",
        options.max_events);
  session_ = std::make_shared<detail::Session>(options.max_events);
  detail::Session::start(session_);
}

Profile::~Profile() { stop(); }
void Profile::stop() { session_->stop(); }

double Profile::seconds() const { return 1e-9 * static_cast<double>(session_->nanoseconds()); }

int64_t Profile::events() const {
  const detail::Limits& limits = *session_->limits();
  return std::min(limits.events.load(), limits.max_events);
}
int64_t Profile::dropped_events() const { return session_->limits()->events - events(); }

std::vector<Row> Profile::rows(const TableOptions& options) const {
  const Before before = order_of(options.sort_by);
  std::map<std::tuple<std::string, Kind, std::string>, Row> merged;
  for (const auto& recorder : session_->recorders()) {
    recorder->with([&](const auto& names, const auto& sites, const auto&) {
      for (const Site& site : sites) {
        if (site.calls == 0) continue;
        const std::string shapes = options.by_shape ? shapes_text(site.words) : "";
        Row& row = merged[{names[site.name], site.kind, shapes}];
        row.calls += site.calls;
        row.total += 1e-9 * static_cast<double>(site.total);
        row.self += 1e-9 * static_cast<double>(site.self);
        row.bytes += site.bytes;
        row.flops += site.flops;
      }
    });
  }
  std::vector<Row> out;
  for (auto& [key, row] : merged) {
    std::tie(row.name, row.kind, row.shapes) = key;
    out.push_back(row);
  }
  std::stable_sort(out.begin(), out.end(), before);
  return out;
}

std::string Profile::table(const TableOptions& options) const {
  const std::vector<Row> all = rows(options);
  double recorded = 0;
  size_t width = 4;
  for (const Row& row : all) {
    recorded += row.self;
    width = std::max(width, row.name.size());
  }
  const size_t shown = options.max_rows < 0
                           ? all.size()
                           : std::min(all.size(), static_cast<size_t>(options.max_rows));
  std::string out = padded("name", width) +
                    "  kind         calls    self ms  self %   total ms    mean us         MB"
                    "       GB/s    GFLOP/s\n";
  for (size_t i = 0; i < shown; ++i) {
    const Row& row = all[i];
    char numbers[160];
    std::snprintf(numbers, sizeof numbers, "  %-8s %9lld%11.3f%8.1f%11.3f%11.2f",
                  std::string(name_of(row.kind)).c_str(), static_cast<long long>(row.calls),
                  1e3 * row.self, recorded > 0 ? 100 * row.self / recorded : 0, 1e3 * row.total,
                  1e6 * mean_of(row));
    const double per_second = row.total > 0 ? 1e-9 / row.total : 0;
    out += padded(row.name, width) + numbers +
           amount_text(1e-6 * static_cast<double>(row.bytes), 1) +
           amount_text(per_second * static_cast<double>(row.bytes), 2) +
           amount_text(per_second * static_cast<double>(row.flops), 1);
    out += row.shapes.empty() ? "\n" : "  " + row.shapes + "\n";
  }
  if (shown < all.size()) out += cat("and ", all.size() - shown, " more lines\n");
  char last[96];
  std::snprintf(last, sizeof last, "%.3f ms in ranges, %.3f ms recorded", 1e3 * recorded,
                1e3 * seconds());
  out += cat(last, ", ", session_->recorders().size(), " threads\n");
  if (dropped_events() > 0)
    out += cat("the trace holds ", events(), " ranges and leaves out ", dropped_events(),
               "; the table counts all\n");
  return out;
}

void Profile::write_chrome_trace(const std::string& path) const {
  constexpr size_t kPiece = 1 << 20;
  const std::string process = cat("\"pid\":", getpid());
  AtomicFile file(path, "profiler");
  std::string text = cat("{\"displayTimeUnit\":\"ms\",\"otherData\":{\"dropped_events\":\"",
                         dropped_events(), "\"},\"traceEvents\":[");
  int64_t thread = 0;
  for (const auto& recorder : session_->recorders()) {
    const std::string where = cat(process, ",\"tid\":", thread);
    text += cat(thread == 0 ? "\n" : ",\n", "{\"ph\":\"M\",\"name\":\"thread_name\",", where,
                ",\"args\":{\"name\":\"thread ", thread, "\"}}");
    ++thread;
    recorder->with([&](const auto& names, const auto& sites, const auto& events) {
      std::vector<std::string> ends;
      for (const Site& site : sites) ends.push_back(site_json(site, names[site.name]));
      for (const Event& event : events) {
        text += cat(",\n{\"ph\":\"X\",", where,
                    ",\"ts\":", microseconds(event.start - session_->start_time()),
                    ",\"dur\":", microseconds(event.duration), ends[event.site]);
        if (text.size() < kPiece) continue;
        file.write(text);
        text.clear();
      }
    });
  }
  file.write(text + "\n]}\n");
  file.commit();
}

}  // namespace cairn::profiler
