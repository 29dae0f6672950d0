// The profiler: what is counted, how times nest, the cap, threads, and the trace file.
#include "cairn/tensor/profiler.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <thread>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/conv.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/matmul.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/optim/adam.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using nlohmann::json;
using profiler::Kind;
using profiler::Profile;
using profiler::Range;
using profiler::Row;
using test::error_text;
using test::read_bytes;
using test::TempFolder;

namespace {

void spin(std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

// The row of that name and kind; one without calls where there is none.
Row row_of(const Profile& profile, const std::string& name, Kind kind = Kind::kernel) {
  for (const Row& row : profile.rows())
    if (row.name == name && row.kind == kind) return row;
  return {};
}

double sum_of_self(const Profile& profile) {
  double sum = 0;
  for (const Row& row : profile.rows()) sum += row.self;
  return sum;
}

json trace_of(const Profile& profile) {
  TempFolder folder;
  profile.write_chrome_trace(folder.path("trace.json"));
  CHECK(folder.files() == 1);
  return json::parse(read_bytes(folder.path("trace.json")));
}

std::vector<json> complete_events(const json& trace) {
  std::vector<json> out;
  for (const json& event : trace.at("traceEvents"))
    if (event.at("ph") == "X") out.push_back(event);
  return out;
}

// Microseconds with three decimals, as whole nanoseconds.
int64_t ns(const json& microseconds) { return std::llround(microseconds.get<double>() * 1e3); }

// Whether any two events of a thread lie apart or one inside the other.
bool events_nest(std::vector<json> events) {
  std::map<int64_t, std::vector<std::pair<int64_t, int64_t>>> by_thread;
  for (const json& e : events)
    by_thread[e.at("tid")].emplace_back(ns(e.at("ts")), -(ns(e.at("ts")) + ns(e.at("dur"))));
  for (auto& [thread, spans] : by_thread) {
    std::sort(spans.begin(), spans.end());  // by start, longest first
    std::vector<int64_t> open;
    for (const auto& [start, minus_end] : spans) {
      while (!open.empty() && open.back() <= start) open.pop_back();
      if (!open.empty() && -minus_end > open.back()) return false;
      open.push_back(-minus_end);
    }
  }
  return true;
}

// Multiply-adds of a convolution whose input pixel exists, times two, one by one.
int64_t flops_by_hand(const Tensor& x, const Tensor& w, const Tensor& y, const Conv2dOptions& o) {
  int64_t taps = 0;
  for (int64_t oy = 0; oy < y.size(2); ++oy)
    for (int64_t ox = 0; ox < y.size(3); ++ox)
      for (int64_t ky = 0; ky < w.size(2); ++ky)
        for (int64_t kx = 0; kx < w.size(3); ++kx) {
          const int64_t iy = oy * o.stride.h + ky * o.dilation.h - o.padding.h;
          const int64_t ix = ox * o.stride.w + kx * o.dilation.w - o.padding.w;
          taps += iy >= 0 && iy < x.size(2) && ix >= 0 && ix < x.size(3);
        }
  return 2 * taps * x.size(0) * w.size(0) * w.size(1);
}

}  // namespace

TEST_CASE("tensor: the profiler is off until a Profile is made, and after it stops") {
  CHECK_FALSE(profiler::recording());
  const auto work = [] {
    const Range range("outside");
    add(ones({3}), ones({3}));
  };
  work();
  Profile profile;
  CHECK(profiler::recording());
  profile.stop();
  CHECK_FALSE(profiler::recording());
  work();
  CHECK(profile.rows().empty());
  CHECK(profile.events() == 0);
  const double seconds = profile.seconds();
  spin(std::chrono::microseconds(100));
  CHECK(profile.seconds() == seconds);
}

TEST_CASE("tensor: nested ranges split their time exactly") {
  Profile profile;
  {
    const Range outer("outer");
    spin(std::chrono::microseconds(300));
    for (int i = 0; i < 3; ++i) {
      const Range inner("inner");
      spin(std::chrono::microseconds(200));
    }
  }
  profile.stop();
  const Row outer = row_of(profile, "outer", Kind::range);
  const Row inner = row_of(profile, "inner", Kind::range);
  CHECK(outer.calls == 1);
  CHECK(inner.calls == 3);
  CHECK(inner.total >= 600e-6);
  CHECK(inner.self == inner.total);
  CHECK(outer.self >= 300e-6);
  CHECK(outer.self == Approx(outer.total - inner.total).epsilon(1e-9));
  CHECK(sum_of_self(profile) == Approx(outer.total).epsilon(1e-9));
  CHECK(outer.total <= profile.seconds());
}

TEST_CASE("tensor: a recursive range counts its time once") {
  Profile profile;
  const std::function<void(int)> descend = [&](int depth) {
    const Range range("descend");
    spin(std::chrono::microseconds(100));
    if (depth > 0) descend(depth - 1);
  };
  descend(4);
  profile.stop();
  const Row row = row_of(profile, "descend", Kind::range);
  CHECK(row.calls == 5);
  CHECK(row.total >= 500e-6);
  CHECK(row.total == Approx(row.self).epsilon(1e-9));
}

TEST_CASE("tensor: every kernel call is counted, forward and backward, with its bytes") {
  const Tensor a = set_requires_grad(rand({4, 5})), b = set_requires_grad(rand({5, 6}));
  const auto step = [&] { backward(sum(relu(matmul(a, b)))); };
  step();
  Profile profile;
  for (int i = 0; i < 7; ++i) step();
  profile.stop();

  const Row matmul = row_of(profile, "matmul");
  CHECK(matmul.calls == 3 * 7);
  CHECK(matmul.bytes == 3 * 7 * 4 * (4 * 5 + 5 * 6 + 4 * 6));
  CHECK(matmul.flops == 3 * 7 * 2 * 4 * 5 * 6);
  CHECK(row_of(profile, "relu_fwd").calls == 7);
  CHECK(row_of(profile, "relu_fwd").bytes == 7 * 4 * 2 * 24);
  CHECK(row_of(profile, "relu_bwd").calls == 7);
  CHECK(row_of(profile, "sum_fwd").calls == 7);
  CHECK(row_of(profile, "matmul", Kind::backward).calls == 7);
  CHECK(row_of(profile, "relu", Kind::backward).calls == 7);

  // From the second step on, gradients are added to: the shape says so.
  int64_t added = 0;
  for (const Row& row : profile.rows({.by_shape = true}))
    if (row.name == "matmul" && row.shapes.rfind("+f32[", 0) == 0) added += row.calls;
  CHECK(added == 2 * 7);
}

TEST_CASE("tensor: operands, spans, copies and fills count their bytes") {
  const Tensor x = rand({10}), y = rand({10});
  const Tensor p = set_requires_grad(rand({100}));
  auto adam = optim::adam({p}, {.lr = 0.1});
  backward(sum(p));
  Profile profile;
  add(x, y);
  add(x, 2);
  raw::clone(x);
  zeros({5});
  adam->step();
  profile.stop();
  CHECK(row_of(profile, "add_fwd").calls == 2);
  CHECK(row_of(profile, "add_fwd").bytes == 4 * (30 + 20));
  CHECK(row_of(profile, "copy_").bytes == 4 * 20);
  CHECK(row_of(profile, "fill_").bytes >= 4 * 5);
  CHECK(row_of(profile, "adam_step").calls == 1);
  CHECK(row_of(profile, "adam_step").bytes >= 4 * 4 * 100);
}

TEST_CASE("tensor: FLOPs of convolutions are those of the taps that meet data") {
  const struct {
    Shape x, w;
    Conv2dOptions options;
  } cases[] = {
      {{2, 3, 1, 1}, {4, 3, 3, 3}, {.padding = 1}},
      {{2, 3, 9, 7}, {4, 3, 3, 3}, {.padding = 1}},
      {{1, 4, 10, 11},
       {6, 2, 3, 5},
       {.stride = 2, .padding = {3, 2}, .dilation = {2, 1}, .groups = 2}},
      {{3, 2, 5, 5}, {2, 2, 1, 1}, {}},
  };
  for (const auto& c : cases) {
    const Tensor x = set_requires_grad(rand(c.x)), w = set_requires_grad(rand(c.w));
    Profile profile;
    const Tensor y = conv2d(x, w, {}, c.options);
    backward(sum(y));
    profile.stop();
    const int64_t wanted = flops_by_hand(x, w, y, c.options);
    CHECK(wanted > 0);
    for (const char* name : {"conv2d_fwd", "conv2d_bwd_data", "conv2d_bwd_weight"}) {
      INFO(name << " of " << cat(c.x, " and ", c.w));
      CHECK(row_of(profile, name).calls == 1);
      CHECK(row_of(profile, name).flops == wanted);
    }
  }
  Profile profile;
  matmul(rand({7, 2, 3}), rand({3, 5}));
  profile.stop();
  CHECK(row_of(profile, "matmul").flops == 7 * 2 * 2 * 3 * 5);
}

TEST_CASE("tensor: a range ends where an exception leaves it") {
  Profile profile;
  CHECK(error_text([] {
          const Range outer("outer");
          const Range inner("inner");
          throw std::runtime_error("left early");
        }) == "left early");
  CHECK_THROWS(matmul(rand({2, 3}), rand({2, 3})));
  { const Range after("after"); }
  profile.stop();
  for (const char* name : {"outer", "inner", "after"})
    CHECK(row_of(profile, name, Kind::range).calls == 1);
  const auto events = complete_events(trace_of(profile));
  CHECK(events_nest(events));
  CHECK(row_of(profile, "outer", Kind::range).self < profile.seconds());
}

TEST_CASE("tensor: threads are recorded side by side") {
  Profile profile;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([] {
      for (int i = 0; i < 250; ++i) {
        const Range outer("outer");
        const Range inner("inner");
      }
    });
  for (auto& thread : threads) thread.join();
  profile.stop();
  CHECK(row_of(profile, "outer", Kind::range).calls == 1000);
  CHECK(row_of(profile, "inner", Kind::range).calls == 1000);
  const auto events = complete_events(trace_of(profile));
  CHECK(events.size() == 2000);
  std::set<int64_t> ids;
  for (const json& event : events) ids.insert(event.at("tid").get<int64_t>());
  CHECK(ids.size() == 4);
  CHECK(events_nest(events));
}

TEST_CASE("tensor: a Profile may be read and stopped while threads are inside ranges") {
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      while (!done) {
        const Range outer("outer");
        const Range inner(cat("inner", 1));
      }
    });
  for (int round = 0; round < 20; ++round) {
    Profile profile({.max_events = 500});
    while (profile.events() < 50) std::this_thread::yield();
    const int64_t before = row_of(profile, "inner1", Kind::range).calls;
    profile.stop();
    const int64_t after = row_of(profile, "inner1", Kind::range).calls;
    CHECK(after >= before);
    CHECK(row_of(profile, "inner1", Kind::range).calls == after);
    CHECK(events_nest(complete_events(trace_of(profile))));
  }
  done = true;
  for (auto& thread : threads) thread.join();
}

TEST_CASE("tensor: the trace is JSON of complete events that nest") {
  const Tensor x = set_requires_grad(rand({2, 3, 6, 6})), w = set_requires_grad(rand({4, 3, 3, 3}));
  Profile profile;
  {
    const Range range("a \"quoted\" name\n\xff");
    backward(sum(conv2d(x, w, {}, {.padding = 1})));
  }
  profile.stop();
  const json trace = trace_of(profile);
  const auto events = complete_events(trace);
  CHECK(trace.at("otherData").at("dropped_events") == "0");
  CHECK(static_cast<int64_t>(events.size()) == profile.events());
  int64_t calls = 0;
  for (const Row& row : profile.rows()) calls += row.calls;
  CHECK(static_cast<int64_t>(events.size()) == calls);
  CHECK(events_nest(events));
  for (const json& e : events) {
    CHECK(e.at("pid").is_number_integer());
    CHECK(e.at("tid").is_number_integer());
    CHECK(e.at("ts") >= 0);
    CHECK(e.at("dur") >= 0);
    CHECK(ns(e.at("ts")) + ns(e.at("dur")) <= std::llround(1e9 * profile.seconds()));
    CHECK(e.at("name").is_string());
    if (e.at("name") != "conv2d_fwd") continue;
    CHECK(e.at("cat") == "kernel");
    CHECK(e.at("args").at("shapes") == "f32[2,4,6,6] f32[2,3,6,6] f32[4,3,3,3]");
    CHECK(e.at("args").at("bytes") == 4 * (2 * 4 * 36 + 2 * 3 * 36 + 4 * 3 * 9));
    CHECK(e.at("args").at("flops") == row_of(profile, "conv2d_fwd").flops);
  }
  const auto named = [&](const std::string& name) {
    return std::count_if(events.begin(), events.end(),
                         [&](const json& e) { return e.at("name") == name; });
  };
  CHECK(named("a \"quoted\" name\n\xef\xbf\xbd") == 1);
  CHECK(named("conv2d_fwd") == 1);
  CHECK(named("conv2d_bwd_weight") == 1);
}

TEST_CASE("tensor: the trace is capped and says so; the table counts all") {
  Profile profile({.max_events = 10});
  for (int i = 0; i < 100; ++i) Range("many");
  profile.stop();
  CHECK(row_of(profile, "many", Kind::range).calls == 100);
  CHECK(profile.events() == 10);
  CHECK(profile.dropped_events() == 90);
  const json trace = trace_of(profile);
  CHECK(complete_events(trace).size() == 10);
  CHECK(trace.at("otherData").at("dropped_events") == "90");
  CHECK(profile.table().find("the trace holds 10 ranges and leaves out 90") != std::string::npos);
}

TEST_CASE("tensor: names and shapes without end take bounded memory") {
  Profile profile({.max_events = 0});
  constexpr int kNames = 70000;  // more than are told apart
  for (int i = 0; i < kNames; ++i) Range(cat("name ", i));
  profile.stop();
  const auto rows = profile.rows();
  CHECK(rows.size() <= 65536 + 1);
  int64_t calls = 0;
  for (const Row& row : rows) calls += row.calls;
  CHECK(calls == kNames);
}

TEST_CASE("tensor: the table has a line for each name, in the order asked for") {
  const Tensor a = rand({64, 64});
  Profile profile;
  {
    const Range range("phase");
    for (int i = 0; i < 3; ++i) matmul(a, a);
    add(a, a);
  }
  profile.stop();
  const std::string table = profile.table();
  for (const char* text : {"name", "calls", "self ms", "GFLOP/s", "matmul", "add_fwd", "phase"})
    CHECK(table.find(text) != std::string::npos);
  CHECK(table.find("f32[") == std::string::npos);
  CHECK(profile.table({.by_shape = true}).find("f32[64,64] f32[64,64] f32[64,64]") !=
        std::string::npos);
  CHECK(profile.rows({.sort_by = "calls"}).front().name == "matmul");
  CHECK(profile.rows({.sort_by = "total"}).front().name == "phase");
  CHECK(profile.rows({.sort_by = "flops"}).front().name == "matmul");
  const auto by_name = profile.rows({.sort_by = "name"});
  CHECK(std::is_sorted(by_name.begin(), by_name.end(),
                       [](const Row& x, const Row& y) { return x.name < y.name; }));
  CHECK(profile.rows({.max_rows = 1}).size() == profile.rows().size());
  CHECK(profile.table({.max_rows = 1}).find(" more lines") != std::string::npos);
  CHECK(error_text([&] { profile.table({.sort_by = "colour"}); }) ==
        "profiler: sort_by must be self, total, calls, mean, bytes, flops or name, got 'colour'");
}

TEST_CASE("tensor: one Profile records at a time") {
  {
    Profile first;
    CHECK(error_text([] { Profile second; }) ==
          "profiler: only one Profile may record at a time, got a second");
    CHECK(profiler::recording());
    first.stop();
    first.stop();
    Profile third;
    { const Range range("third's"); }
    CHECK(first.rows().empty());
    CHECK(third.rows().size() == 1);
  }
  CHECK_FALSE(profiler::recording());
  CHECK(error_text([] { Profile profile({.max_events = -1}); }) ==
        "profiler: max_events must be at least 0, got -1");
  CHECK_FALSE(profiler::recording());
}

TEST_CASE("tensor: a range that is open when its Profile ends belongs to none") {
  auto first = std::make_unique<Profile>();
  auto outer = std::make_unique<Range>("outer");
  first->stop();
  CHECK(first->rows().empty());
  first.reset();
  Profile second;
  {
    const Range inner("inner");
    outer.reset();
  }
  second.stop();
  const auto rows = second.rows();
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].name == "inner");
  CHECK(rows[0].self == rows[0].total);
}

TEST_CASE("tensor: a trace that cannot be written is an error and leaves nothing") {
  TempFolder folder;
  Profile profile;
  profile.stop();
  CHECK(error_text([&] {
          profile.write_chrome_trace(folder.path("no/such/trace.json"));
        }).rfind("profiler: ", 0) == 0);
  CHECK(folder.files() == 0);
  CHECK(complete_events(trace_of(profile)).empty());
}
