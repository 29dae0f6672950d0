// What one process does for the others: they wait for it as long as it takes, and hear at once when
// it goes wrong.
#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include "cairn/dist/auto_group.h"
#include "cairn/dist/launcher.h"
#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "tests/catch.h"
#include "tests/dist/contract.h"
#include "tests/trainer/ranks.h"

namespace cairn::test {
namespace {

using Catch::Matchers::Contains;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Hosts of two ranks each.
std::shared_ptr<dist::ProcessGroup> on_two_hosts(dist::GroupOptions options) {
  std::vector<int> hosts;
  for (int r = 0; r < options.size; ++r) hosts.push_back(r / 2);
  return dist::group_over_hosts(std::move(options), std::move(hosts));
}

// As on such hosts, whatever the group.
struct TwoHosts : DDPStrategy {
  using DDPStrategy::DDPStrategy;
  int local_rank() const override { return rank() % 2; }
};

struct Preparing : SyncedModel {
  explicit Preparing(std::function<void(int rank)> by) : prepare(std::move(by)) {}
  void prepare_data() override { prepare(trainer().global_rank()); }
  std::function<void(int rank)> prepare;
};

struct SlowSave : Callback {
  void on_train_end(Trainer& trainer, TrainingModule&) override {
    trainer.strategy().on_rank_zero([] { std::this_thread::sleep_for(milliseconds(3500)); });
  }
};

TrainerOptions over(dist::ProcessGroup& group, milliseconds patience) {
  TrainerOptions o = quiet({.max_epochs = 1});
  o.strategy =
      TwoHosts({.patience = patience,
                .group = std::shared_ptr<dist::ProcessGroup>(std::shared_ptr<void>(), &group)});
  return o;
}

void fit(TrainerOptions options, const std::function<void(int rank)>& prepare) {
  const data::TensorDataset set = small_data(16);
  data::DataLoader loader(set, {.batch_size = 2});
  Preparing model(prepare);
  Trainer(std::move(options)).fit(model, loader);
}

}  // namespace

TEST_CASE("trainer: work of one process may take longer than a collective's time-out") {
  const OneThread one_thread;
  std::atomic<int> prepared = 0;
  run_ranks(
      dist::shm_group, 2,
      [&](dist::ProcessGroup& group) {
        fit(over(group, seconds(60)), [&](int) {
          std::this_thread::sleep_for(milliseconds(3500));
          ++prepared;
        });
      },
      seconds(3));
  CHECK(prepared == 1);
  run_ranks(
      dist::ring_group, 2,
      [&](dist::ProcessGroup& group) {
        TrainerOptions o = over(group, seconds(60));
        o.callbacks = {SlowSave()};
        fit(o, [](int) {});
      },
      seconds(3));

  // It ends where patience does.
  const auto errors = errors_of_ranks(dist::shm_group, 2, [&](dist::ProcessGroup& group) {
    fit(over(group, milliseconds(300)),
        [](int) { std::this_thread::sleep_for(milliseconds(1500)); });
  });
  CHECK_THAT(errors[1], Contains("rank 1 waited 300 ms for rank 0"));
}

TEST_CASE("trainer: an error in prepare_data ends those who wait for it at once") {
  const OneThread one_thread;
  for (const MakeGroup& make :
       {MakeGroup(dist::shm_group), MakeGroup(dist::ring_group), MakeGroup(on_two_hosts)}) {
    std::atomic<Clock::duration::rep> failed = 0;
    std::vector<double> heard(4);
    const auto errors = errors_of_ranks(make, 4, [&](dist::ProcessGroup& group) {
      try {
        fit(over(group, seconds(60)), [&](int rank) {
          std::this_thread::sleep_for(milliseconds(300));
          if (rank == 0) {  // the other host's is not done yet
            std::this_thread::sleep_for(seconds(4));
            return;
          }
          failed = Clock::now().time_since_epoch().count();
          fail("download: mirror must answer, got silence");
        });
      } catch (...) {
        const Clock::time_point then(Clock::duration(failed.load()));
        heard[static_cast<size_t>(group.rank())] =
            std::chrono::duration<double>(Clock::now() - then).count();
        throw;
      }
    });
    CHECK(errors[2] == "download: mirror must answer, got silence");
    for (const size_t rank : {0, 1, 3}) {
      INFO("rank " << rank << " after " << heard[rank] << " s: " << errors[rank]);
      CHECK_THAT(errors[rank],
                 Contains("rank 2 failed: download: mirror must answer, got silence"));
      if (rank != 0) CHECK(heard[rank] < 3);
    }
  }
}

TEST_CASE("trainer: a process that ends in prepare_data ends the run") {
  const struct {
    const char *fault, *heard;
  } cases[] = {{"throw", "rank 0 failed: download: mirror must answer, got silence"},
               {"kill", "barrier #2: the connection of rank 0 "},
               {"exit", "barrier #2: the connection of rank 0 "}};
  for (const auto& c : cases) {
    std::map<int, std::string> out;
    dist::LaunchOptions options{.workers = 3, .failure_grace = seconds(20)};
    options.program = {std::string(CAIRN_BIN_DIR) + "/dist_prepare", c.fault};
    options.show = [&](const dist::OutputLine& line) {
      out[line.rank] += cat(line.text, "\n");
      return "";
    };
    const dist::LaunchResult result = dist::launch(options);
    const auto moment = [&](int rank, const std::string& what) {
      const size_t at = out[rank].find(what + " at ");
      return at == std::string::npos ? 0 : std::stoll(out[rank].substr(at + what.size() + 4));
    };
    CHECK(result.exit_status != 0);
    for (const int rank : {1, 2}) {
      std::string error;
      for (const dist::WorkerFailure& failure : result.failures)
        if (failure.rank == rank) error = failure.error;
      INFO(c.fault << ", rank " << rank << ": " << error);
      CHECK_THAT(error, Contains(c.heard));
      REQUIRE(moment(rank, "heard") > 0);
      CHECK(static_cast<double>(moment(rank, "heard") - moment(0, "fault")) * 1e-9 < 5);
    }
  }
}

}  // namespace cairn::test
