// What each launcher's variables mean, and what is said of those that contradict each other.
#include "cairn/dist/environment.h"

#include <map>

#include "cairn/dist/host_list.h"
#include "cairn/tensor/error.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;

namespace {

using Table = std::map<std::string, std::string>;

Lookup lookup(Table table) {
  return [table = std::move(table)](const std::string& name) -> std::optional<std::string> {
    const auto at = table.find(name);
    return at == table.end() ? std::nullopt : std::optional(at->second);
  };
}

ClusterEnvironment detect(const Table& table) { return detect_environment(lookup(table)); }

// The table with some variables changed; those that are "-" left out.
Table with(Table table, const Table& changes) {
  for (const auto& [name, value] : changes) {
    if (value == "-")
      table.erase(name);
    else
      table[name] = value;
  }
  return table;
}

// "slurm 5/8 1/4 1/2 node5:19876": rank, local rank and node, each of how many, and the master.
std::string text(const ClusterEnvironment& e) {
  return cat(e.name, " ", e.rank, "/", e.world_size, " ", e.local_rank, "/", e.local_world_size,
             " ", e.node_rank, "/", e.num_nodes, " ", e.master_address, ":", e.master_port);
}

const Table kTorchrun = {{"TORCHELASTIC_RUN_ID", "f00"},
                         {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                         {"TORCHELASTIC_RESTART_COUNT", "0"},
                         {"RANK", "5"},
                         {"WORLD_SIZE", "8"},
                         {"LOCAL_RANK", "1"},
                         {"LOCAL_WORLD_SIZE", "4"},
                         {"GROUP_RANK", "1"},
                         {"GROUP_WORLD_SIZE", "2"},
                         {"MASTER_ADDR", "node0"},
                         {"MASTER_PORT", "29500"}};

const Table kSlurm = {{"SLURM_JOB_ID", "789876"},     {"SLURM_STEP_ID", "2"},
                      {"SLURM_JOB_NAME", "train"},    {"SLURM_NTASKS", "8"},
                      {"SLURM_NTASKS_PER_NODE", "4"}, {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"},
                      {"SLURM_PROCID", "5"},          {"SLURM_LOCALID", "1"},
                      {"SLURM_NODEID", "1"},          {"SLURM_NNODES", "2"},
                      {"SLURM_NODELIST", "node[5-6]"}};

const Table kMpi = {{"OMPI_COMM_WORLD_SIZE", "4"},
                    {"OMPI_COMM_WORLD_RANK", "3"},
                    {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                    {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                    {"OMPI_MCA_ess_base_jobid", "371916801"},
                    {"OMPI_MCA_orte_precondition_transports", "0b995b9cf60d3fca-31c68972c223cf6d"},
                    {"OMPI_MCA_orte_hnp_uri", "371916800.0;tcp://192.0.2.2,10.0.0.2:33157"}};

const Table kCairn = {{"CAIRN_LAUNCH", "1"},     {"CAIRN_RUN_ID", "r1"},
                      {"CAIRN_SECRET", "s1"},    {"RANK", "1"},
                      {"WORLD_SIZE", "2"},       {"LOCAL_RANK", "1"},
                      {"LOCAL_WORLD_SIZE", "2"}, {"GROUP_RANK", "0"},
                      {"GROUP_WORLD_SIZE", "1"}, {"MASTER_ADDR", "127.0.0.1"},
                      {"MASTER_PORT", "4000"}};

}  // namespace

TEST_CASE("dist: a process that nobody started is alone") {
  CHECK(text(detect({})) == "single 0/1 0/1 0/1 127.0.0.1:0");
  // Left over from somewhere, and of one process anyway.
  CHECK(detect({{"WORLD_SIZE", "1"}, {"RANK", "0"}}).name == "single");
  CHECK(detect({{"WORLD_SIZE", "1"}}).name == "single");
  CHECK(detect({{"MASTER_ADDR", "node0"}, {"MASTER_PORT", "29500"}}).name == "single");
}

TEST_CASE("dist: torchrun's variables") {
  // The agent holds MASTER_PORT.
  const ClusterEnvironment e = detect(kTorchrun);
  CHECK(text(e) == "torchelastic 5/8 1/4 1/2 node0:29501");
  CHECK(detect(with(kTorchrun, {{"TORCHELASTIC_RESTART_COUNT", "1"}})).run_id != e.run_id);
  CHECK(detect(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "-"}})).master_port == 29500);
  CHECK(detect(with(kTorchrun, {{"MASTER_PORT", "65535"}})).master_port == 32767);
  CHECK(detect(with(kTorchrun, {{"CAIRN_MASTER_PORT", "7000"}})).master_port == 7000);
  CHECK(detect(with(kTorchrun, {{"CAIRN_SECRET", "mine"}})).secret == "mine");
  // By hand.
  CHECK(text(detect({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}})) ==
        "torchelastic 1/2 1/2 0/1 127.0.0.1:12910");
}

TEST_CASE("dist: torchrun's variables that are set in part are an error that names the others") {
  const auto error = [](const std::string& missing, const std::string& set) {
    return cat("environment: ", missing,
               " must be set, got nothing; start the program with "
               "torchrun or cairn launch, unset ",
               set,
               ", or set CAIRN_ENVIRONMENT=kubeflow where "
               "a Kubeflow job sets them");
  };
  CHECK_THROWS_WITH(detect({{"WORLD_SIZE", "2"}}), error("RANK and LOCAL_RANK", "WORLD_SIZE"));
  CHECK_THROWS_WITH(detect({{"RANK", "0"}}), error("WORLD_SIZE and LOCAL_RANK", "RANK"));
  CHECK_THROWS_WITH(detect({{"LOCAL_RANK", "1"}}), error("WORLD_SIZE and RANK", "LOCAL_RANK"));
  CHECK_THROWS_WITH(detect({{"WORLD_SIZE", "2"}, {"RANK", "1"}}),
                    error("LOCAL_RANK", "WORLD_SIZE and RANK"));
  CHECK_THROWS_WITH(detect({{"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}}),
                    error("RANK", "WORLD_SIZE and LOCAL_RANK"));
  CHECK_THROWS_WITH(detect({{"WORLD_SIZE", "two"}}), Contains("got 'two'"));
  CHECK(detect({{"WORLD_SIZE", "2"}, {"CAIRN_ENVIRONMENT", "single"}}).name == "single");
  // What tells of several in another way stands above them.
  CHECK(detect(with(kSlurm, {{"WORLD_SIZE", "8"}})).name == "slurm");
  CHECK(detect(with(kMpi, {{"WORLD_SIZE", "4"}})).name == "mpi");
}

TEST_CASE("dist: SLURM's variables") {
  const ClusterEnvironment e = detect(kSlurm);
  CHECK(text(e) == "slurm 5/8 1/4 1/2 node5:24876");
  CHECK(e.run_id == "789876.2");
  CHECK_THAT(e.secret, Contains("789876.2"));
  CHECK(detect(with(kSlurm, {{"SLURM_JOB_ID", "12"}})).master_port == 15012);
  CHECK(detect(with(kSlurm, {{"MASTER_PORT", "7001"}})).master_port == 7001);
  CHECK(detect(with(kSlurm, {{"MASTER_ADDR", "node7"}})).master_address == "node7");
  // Unequal nodes.
  CHECK(text(detect(with(kSlurm, {{"SLURM_NTASKS", "7"},
                                  {"SLURM_NTASKS_PER_NODE", "-"},
                                  {"SLURM_STEP_TASKS_PER_NODE", "4,3"}}))) ==
        "slurm 5/7 1/3 1/2 node5:24876");
  // One node talks to itself.
  const Table one = with(kSlurm, {{"SLURM_NTASKS", "2"},
                                  {"SLURM_STEP_TASKS_PER_NODE", "2"},
                                  {"SLURM_PROCID", "1"},
                                  {"SLURM_NODEID", "0"},
                                  {"SLURM_NNODES", "1"}});
  CHECK(text(detect(one)) == "slurm 1/2 1/2 0/1 127.0.0.1:24876");
  // A shell of a job is not one of its tasks.
  CHECK(detect(with(kSlurm, {{"SLURM_JOB_NAME", "bash"}})).name == "single");
  const Table shell = with(kSlurm, {{"SLURM_JOB_NAME", "interactive"}});
  CHECK(detect(shell).name == "single");
  // But srun within such a job starts tasks, unless it is for a terminal.
  const Table step = with(shell, {{"SLURM_STEP_NUM_TASKS", "8"}});
  CHECK(detect(step).name == "slurm");
  CHECK(detect(with(step, {{"SLURM_PTY_PORT", "40000"}})).name == "single");
}

TEST_CASE("dist: LSF's variables and its file of hosts") {
  test::TempFolder folder;
  const Table lsf = {{"LSB_JOBID", "1234567"},
                     {"LSB_DJOB_RANKFILE", folder.write("hosts", "batch\nn1\nn1\nn2\nn2\n")},
                     {"JSM_NAMESPACE_SIZE", "4"},
                     {"JSM_NAMESPACE_RANK", "3"},
                     {"JSM_NAMESPACE_LOCAL_RANK", "1"},
                     {"HOSTNAME", "n2.cluster"}};
  CHECK(text(detect(lsf)) == "lsf 3/4 1/2 1/2 n1:10567");
  CHECK_THROWS_WITH(detect(with(lsf, {{"HOSTNAME", "n9"}})),
                    Contains("lsf: HOSTNAME must be a host of ") && Contains("got 'n9'"));
  CHECK_THROWS_WITH(detect(with(lsf, {{"LSB_DJOB_RANKFILE", folder.path("none")}})),
                    Contains("lsf: LSB_DJOB_RANKFILE must be a file that lists hosts"));
  CHECK_THROWS_WITH(detect(with(lsf, {{"JSM_NAMESPACE_RANK", "-"}})),
                    Contains("lsf: JSM_NAMESPACE_RANK must be set, got nothing; "));
}

TEST_CASE("dist: Open MPI's variables and those of MPICH") {
  const ClusterEnvironment e = detect(kMpi);
  CHECK(e.name == "mpi");
  CHECK(e.rank == 3);
  CHECK(e.world_size == 4);
  CHECK(e.local_rank == 3);
  CHECK(e.num_nodes == 1);
  CHECK(e.master_address == "127.0.0.1");
  CHECK(e.master_port >= 25000);
  CHECK(e.master_port < 30000);
  CHECK_THAT(e.secret, Contains("0b995b9cf60d3fca-31c68972c223cf6d"));
  // Another job has another port, almost always, and another id.
  CHECK(detect(with(kMpi, {{"OMPI_MCA_ess_base_jobid", "371982337"}})).master_port !=
        e.master_port);
  const ClusterEnvironment two = detect(
      with(kMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}}));
  CHECK(two.num_nodes == 2);
  CHECK(two.node_rank == 1);
  CHECK(two.master_address == "192.0.2.2");
  const Table mpich = {{"PMI_SIZE", "2"},
                       {"PMI_RANK", "1"},
                       {"MPI_LOCALNRANKS", "2"},
                       {"MPI_LOCALRANKID", "1"},
                       {"MASTER_PORT", "30123"}};
  CHECK(text(detect(mpich)) == "mpi 1/2 1/2 0/1 127.0.0.1:30123");
  CHECK_THROWS_WITH(detect(with(mpich, {{"MASTER_PORT", "-"}})),
                    Contains("mpi: MASTER_PORT must be set, got nothing; "));
}

TEST_CASE("dist: Kubeflow is taken by name only") {
  const Table pod = {
      {"RANK", "2"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "job-0"}, {"MASTER_PORT", "23456"}};
  CHECK_THROWS_WITH(detect(pod), Contains("environment: LOCAL_RANK must be set, got nothing; ") &&
                                     Contains("CAIRN_ENVIRONMENT=kubeflow"));
  CHECK(text(detect(with(pod, {{"CAIRN_ENVIRONMENT", "kubeflow"}}))) ==
        "kubeflow 2/3 0/1 2/3 job-0:23456");
  CHECK(text(environment_named("kubeflow", lookup(pod))) == "kubeflow 2/3 0/1 2/3 job-0:23456");
}

TEST_CASE("dist: the launcher's own variables stand above those of the job it runs in") {
  Table all = kSlurm;
  all.insert(kMpi.begin(), kMpi.end());
  all.insert(kTorchrun.begin(), kTorchrun.end());
  CHECK(detect(all).name == "torchelastic");
  for (const auto& [name, value] : kCairn) all[name] = value;
  const ClusterEnvironment e = detect(all);
  CHECK(text(e) == "cairn 1/2 1/2 0/1 127.0.0.1:4000");
  CHECK(e.run_id == "r1");
  CHECK(e.secret == "s1");
  // mpirun within a SLURM job: SLURM's variables tell of mpirun's daemon.
  Table both = kSlurm;
  both.insert(kMpi.begin(), kMpi.end());
  CHECK(detect(both).name == "mpi");
  CHECK(detect(with(both, {{"CAIRN_ENVIRONMENT", "slurm"}})).name == "slurm");
  CHECK(detect(with(all, {{"CAIRN_ENVIRONMENT", "single"}})).name == "single");
  CHECK_THROWS_WITH(detect({{"CAIRN_ENVIRONMENT", "slrum"}}),
                    "environment: name must be torchelastic, slurm, lsf, mpi, kubeflow, cairn or "
                    "single, got 'slrum'; did you mean 'slurm'?");
}

TEST_CASE("dist: variables that are missing or wrong are one sentence with a hint") {
  const std::string torchrun =
      "; start the program with torchrun, which sets it, or unset "
      "TORCHELASTIC_RUN_ID and LOCAL_RANK";
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"RANK", "-"}})),
                    "torchelastic: RANK must be set, got nothing" + torchrun);
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"RANK", ""}})),
                    "torchelastic: RANK must be set, got nothing" + torchrun);
  CHECK_THROWS_WITH(
      detect(with(kTorchrun, {{"WORLD_SIZE", "abc"}})),
      "torchelastic: WORLD_SIZE must be a number from 1 to 1048576, got 'abc'" + torchrun);
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"WORLD_SIZE", "0"}})), Contains("got '0'"));
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"RANK", "8"}})),
                    Contains("torchelastic: RANK must be a number from 0 to 7, got '8'"));
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"LOCAL_RANK", "4"}})),
                    Contains("torchelastic: LOCAL_RANK must be a number from 0 to 3, got '4'"));
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"GROUP_RANK", "2"}})),
                    Contains("GROUP_RANK must be below the number of nodes, 2, got 2"));
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"MASTER_PORT", "70000"}})), Contains("got '70000'"));
  CHECK_THROWS_WITH(detect(with(kTorchrun, {{"LOCAL_WORLD_SIZE", "-"}})),
                    Contains("LOCAL_WORLD_SIZE must be set"));
  CHECK_THROWS_WITH(detect(with(kCairn, {{"CAIRN_SECRET", "-"}})),
                    "cairn launch: CAIRN_SECRET must be set, got nothing; start the program with "
                    "`cairn launch`, which sets it");
  CHECK_THROWS_WITH(detect(with(kSlurm, {{"SLURM_PROCID", "-"}})),
                    Contains("slurm: SLURM_PROCID must be set, got nothing; start the program with "
                             "srun"));
  CHECK_THROWS_WITH(
      detect(with(kSlurm, {{"SLURM_NTASKS_PER_NODE", "-"}, {"SLURM_STEP_TASKS_PER_NODE", "-"}})),
      Contains("slurm: SLURM_NTASKS_PER_NODE must be set where SLURM_NTASKS is above "
               "1, got nothing with SLURM_NTASKS=8; ") &&
          Contains("--ntasks-per-node=8"));
  CHECK_THROWS_WITH(detect(with(kSlurm, {{"SLURM_STEP_TASKS_PER_NODE", "4(x3)"}})),
                    Contains("SLURM_STEP_TASKS_PER_NODE must be of 2 nodes, got '4(x3)'"));
  CHECK_THROWS_WITH(detect(with(kSlurm, {{"SLURM_NODELIST", "node[5-"}})),
                    Contains("hosts: list must be like"));
  CHECK_THROWS_WITH(detect(with(kMpi, {{"OMPI_COMM_WORLD_RANK", "4"}})),
                    Contains("mpi: OMPI_COMM_WORLD_RANK must be a number from 0 to 3, got '4'; "));
}

TEST_CASE("dist: devices and nodes must be those of the job") {
  const ClusterEnvironment torchrun = detect(kTorchrun), slurm = detect(kSlurm);
  CHECK_NOTHROW(check_layout(torchrun, 4, 2));
  CHECK_NOTHROW(check_layout(slurm, 4, 2));
  CHECK_NOTHROW(check_layout(detect({}), 16, 1));
  CHECK_THROWS_WITH(check_layout(torchrun, 1, 2),
                    "torchelastic: LOCAL_RANK must be below devices = 1, got 1; start 1 processes "
                    "per node, or set devices to 4");
  CHECK_THROWS_WITH(check_layout(torchrun, 2, 2),
                    "torchelastic: devices must be the processes per node, 4, got 2; set devices "
                    "to 4");
  CHECK_THROWS_WITH(check_layout(torchrun, 4, 1),
                    Contains("num_nodes must be the number of nodes of the job, 2, got 1"));
  CHECK_THROWS_WITH(check_layout(slurm, 2, 2),
                    "slurm: devices must be SLURM's tasks per node, 4, got 2; set devices to 4, or "
                    "ask SLURM for --ntasks-per-node=2");
  CHECK_THROWS_WITH(check_layout(slurm, 4, 3),
                    "slurm: num_nodes must be the number of nodes of the job, 2, got 3; set "
                    "num_nodes to 2, or ask SLURM for --nodes=3");
  CHECK_THROWS_WITH(
      check_layout(
          detect(with(kSlurm, {{"SLURM_NTASKS", "7"}, {"SLURM_STEP_TASKS_PER_NODE", "3,4"}})), 4,
          2),
      Contains("slurm: devices x num_nodes must be the world size, 7, got 4 x 2; "));
}

TEST_CASE("dist: lists of hosts and of tasks") {
  using Hosts = std::vector<std::string>;
  CHECK(expand_hosts("host") == Hosts{"host"});
  CHECK(expand_hosts("host[5-7,12],other") == Hosts{"host5", "host6", "host7", "host12", "other"});
  CHECK(expand_hosts("n[008-010]") == Hosts{"n008", "n009", "n010"});
  CHECK(expand_hosts("r[1-2]n[3,5].net") == Hosts{"r1n3.net", "r1n5.net", "r2n3.net", "r2n5.net"});
  CHECK(expand_hosts("a-b,10.0.0.1") == Hosts{"a-b", "10.0.0.1"});
  for (const char* wrong : {"", "a,,b", "a[1-2", "a]", "a[2-1]", "a[x]", "a[]", "a[1-70000]",
                            "a[1-1000]b[1-1000]", "a b"})
    CHECK_THROWS_WITH(expand_hosts(wrong), Contains(cat("got '", wrong, "'")));
  CHECK(expand_counts("2(x3),1") == std::vector<int>{2, 2, 2, 1});
  CHECK(expand_counts("4") == std::vector<int>{4});
  for (const char* wrong : {"", "0", "2(x", "2(3)", "x", "2(x0)", "2(x3"})
    CHECK_THROWS_WITH(expand_counts(wrong), Contains(cat("got '", wrong, "'")));
}
