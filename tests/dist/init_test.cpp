// From the variables of a launcher to a group: by ranks that are threads, and by workers.
#include "cairn/dist/init.h"

#include <cmath>
#include <cstring>
#include <future>
#include <thread>

#include "cairn/dist/launcher.h"
#include "cairn/dist/socket.h"
#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using Clock = std::chrono::steady_clock;

namespace {

int free_port() { return listen_on({"127.0.0.1", 0}).local().port; }

ClusterEnvironment environment(int rank, int size, int port) {
  ClusterEnvironment e;
  e.name = "cairn";
  e.rank = e.local_rank = rank;
  e.world_size = e.local_world_size = size;
  e.master_port = port;
  e.run_id = "test";
  e.secret = "of this test";
  return e;
}

// What each of these ranks gets: its error, or the sum of rank + 1 over all.
std::vector<std::string> meet(const std::vector<ClusterEnvironment>& ranks,
                              const InitOptions& options) {
  std::vector<std::future<std::string>> running;
  for (const ClusterEnvironment& e : ranks)
    running.push_back(std::async(std::launch::async, [&] {
      return test::error_text([&] {
        const auto group = init_process_group(e, options);
        const Tensor t = full({3}, e.rank + 1, {DType::f32});
        group->all_reduce(t).wait();
        throw std::runtime_error(cat(group->backend(), " ", t.data<float>()[2]));
      });
    }));
  std::vector<std::string> out;
  for (auto& each : running) out.push_back(each.get());
  return out;
}

}  // namespace

TEST_CASE("dist: ranks meet by their environments and make a group of each backend") {
  for (const char* backend : {"auto", "ring", "shm"}) {
    const int port = free_port();
    const auto got =
        meet({environment(0, 3, port), environment(1, 3, port), environment(2, 3, port)},
             {.backend = backend});
    for (const std::string& each : got)
      CHECK_THAT(each, Contains(backend == std::string("ring") ? "ring 6" : " 6"));
  }
  CHECK(init_process_group({})->backend() == "local");
}

TEST_CASE("dist: a backend that there is not is answered with the nearest") {
  CHECK_THROWS_WITH(init_process_group({}, {.backend = "rnig"}),
                    Contains("init_process_group: backend must be auto, local,") &&
                        Contains("got 'rnig'; did you mean 'ring'?"));
  CHECK_THROWS_WITH(init_process_group({}, {.timeout = Milliseconds(0)}),
                    Contains("timeout must be above 0, got 0 ms"));
  CHECK_THROWS_WITH(init_process_group(environment(0, 2, 0)), Contains("master port must be"));
  CHECK_THROWS_WITH(init_process_group(environment(2, 2, 9)),
                    Contains("rank must be below the world size, got 2 of 2"));
}

TEST_CASE("dist: ranks that are missing, double or of another world are named") {
  int port = free_port();
  const auto start = Clock::now();
  for (const std::string& each :
       meet({environment(0, 4, port), environment(1, 4, port), environment(3, 4, port)},
            {.timeout = Milliseconds(1000)}))
    CHECK_THAT(each, Contains("3/4 joined, missing [2]"));
  CHECK(Clock::now() - start < std::chrono::seconds(4));
  port = free_port();
  for (const std::string& each :
       meet({environment(0, 2, port), environment(1, 3, port)}, {.timeout = Milliseconds(5000)}))
    CHECK_THAT(each, Contains("2") && Contains("3"));
  port = free_port();
  ClusterEnvironment stranger = environment(1, 2, port);
  stranger.secret = "another";
  const auto got = meet({environment(0, 2, port), stranger}, {.timeout = Milliseconds(1000)});
  CHECK_THAT(got[0], Contains("1/2 joined, missing [1]"));
  CHECK_THAT(got[1], Contains("secret must be the run's, got another"));
}

TEST_CASE("dist: rank 0 keeps the store until the others have left") {
  const int port = free_port();
  std::promise<void> left;
  std::thread first([&] {
    init_process_group(environment(0, 2, port))->barrier();
    left.set_value();
  });
  {
    const auto group = init_process_group(environment(1, 2, port));
    group->barrier();
    std::this_thread::sleep_for(Milliseconds(200));
    CHECK(left.get_future().wait_for(Milliseconds(0)) == std::future_status::timeout);
    CHECK_NOTHROW(group->options().store->set("word", "left"));
  }
  const auto start = Clock::now();
  first.join();
  CHECK(Clock::now() - start < std::chrono::seconds(2));
}

// Whether the last call timed out or rank 0 gave the group up, outside of any exception.
TEST_CASE("dist: rank 0 does not wait long for the others behind a failure") {
  for (const char* backend : {"ring", "shm"})
    for (const bool aborts : {false, true}) {
      const int port = free_port();
      std::promise<void> over;
      std::thread second([&] {
        const auto group = init_process_group(environment(1, 2, port), {.backend = backend});
        over.get_future().wait();
      });
      auto group = init_process_group(environment(0, 2, port), {.backend = backend});
      if (aborts)
        group->abort("bad image 7");
      else
        CHECK_THROWS_AS(group->barrier({.timeout = Milliseconds(100)}), TimeoutError);
      const auto start = Clock::now();
      group.reset();
      CHECK(Clock::now() - start < std::chrono::seconds(20));  // of a time-out of 60 s
      over.set_value();
      second.join();
    }
}

namespace {

LaunchResult launch_worker(const std::vector<std::string>& arguments, int workers,
                           double& seconds) {
  LaunchOptions options{.workers = workers};
  options.program = {std::string(CAIRN_BIN_DIR) + "/dist_sum"};
  options.program.insert(options.program.end(), arguments.begin(), arguments.end());
  const auto start = Clock::now();
  LaunchResult result = launch(options);
  seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return result;
}

}  // namespace

TEST_CASE("dist: workers of the launcher meet and sum") {
  double seconds = 0;
  for (const char* backend : {"shm", "ring"}) {
    const LaunchResult result = launch_worker({"--backend", backend}, 3, seconds);
    INFO(result.text());
    CHECK(result.exit_status == 0);
  }
}

TEST_CASE("dist: whoever dies in a collective, the run ends within two seconds and names it") {
  for (const char* backend : {"shm", "ring"})
    for (const char* rank : {"0", "1"}) {
      double seconds = 0;
      const LaunchResult r =
          launch_worker({"--backend", backend, "--kill", rank, "--after", "200"}, 3, seconds);
      INFO(backend << " " << rank << ": " << r.text());
      CHECK(r.exit_status == 137);
      CHECK(r.text().rfind(cat("rank ", rank, " was killed by signal 9 (SIGKILL)"), 0) == 0);
      CHECK(seconds < 2 + 1);  // a second to start
    }
}

TEST_CASE("dist: a rank that is stopped is named, also where it holds the store") {
  for (const char* backend : {"shm", "ring"})
    for (const char* rank : {"0", "1"}) {
      double seconds = 0;
      const LaunchResult r = launch_worker(
          {"--backend", backend, "--stop", rank, "--after", "200", "--timeout", "2000"}, 3,
          seconds);
      INFO(backend << " " << rank << ": " << r.text());
      CHECK(r.exit_status == 1);
      CHECK_THAT(r.text(), Contains(cat(" waited 2000 ms for rank ", rank, ", got nothing")));
      // A second to start, the time-out and one more, and two until the stopped one is killed.
      CHECK(seconds < 1 + 2 + 1 + 2);
    }
}

TEST_CASE("dist: an error of one rank is told before those that follow from it") {
  for (const char* backend : {"shm", "ring"}) {
    double seconds = 0;
    const LaunchResult r =
        launch_worker({"--backend", backend, "--throw", "1", "--after", "200"}, 2, seconds);
    INFO(backend << ": " << r.text());
    CHECK(r.exit_status == 1);
    CHECK(r.text().rfind("rank 1 ended with exit status 1: data: image 7 must be whole\n", 0) == 0);
    REQUIRE(r.failures.size() == 2);
    CHECK(r.failures[1].consequence);
    CHECK(seconds < 3);
  }
}

TEST_CASE("dist: a worker that dies before the ranks meet ends the run at once") {
  double seconds = 0;
  const LaunchResult r = launch_worker({"--early", "1"}, 3, seconds);
  CHECK(r.exit_status == 3);
  // Others may see the store's end before they are told to end.
  CHECK(r.text().rfind("rank 1 ended with exit status 3\n", 0) == 0);
  CHECK(seconds < 2);
}

TEST_CASE("dist: processes that share batches train what one process trains") {
  const auto fitted = [](int workers) {
    const test::TempFolder folder;
    const LaunchResult result = launch(
        {.workers = workers, .program = {std::string(CAIRN_BIN_DIR) + "/dist_fit", folder.path()}});
    INFO(result.text());
    REQUIRE(result.exit_status == 0);
    std::vector<std::vector<float>> out;
    for (int r = 0; r < workers; ++r) {
      const std::string bytes = test::read_bytes(folder.path(std::to_string(r)));
      out.emplace_back(bytes.size() / sizeof(float));
      std::memcpy(out.back().data(), bytes.data(), bytes.size());
    }
    return out;
  };
  const auto one = fitted(1), two = fitted(2), four = fitted(4);
  REQUIRE(one[0].size() == 8 * 9 + 8 + 512 * 10 + 10);
  CHECK(two[0] == two[1]);
  for (int r = 1; r < 4; ++r) CHECK(four[0] == four[static_cast<size_t>(r)]);
  double largest = 0;
  for (const auto* several : {&two[0], &four[0]})
    for (size_t i = 0; i < one[0].size(); ++i)
      largest = std::max(largest, std::abs(static_cast<double>(one[0][i]) - (*several)[i]));
  CHECK(largest < 1e-6);
}
