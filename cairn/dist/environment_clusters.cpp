// SLURM, LSF and MPI: their variables as a ClusterEnvironment. No MPI library is linked.
#include <algorithm>
#include <cctype>
#include <fstream>

#include "cairn/dist/environment_parts.h"
#include "cairn/dist/host_list.h"
#include "cairn/tensor/error.h"

namespace cairn::dist::detail {
namespace {

// FNV-1a. All ranks make the same port of the same job.
uint32_t hash_of(const std::string& text) {
  uint32_t hash = 2166136261u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash;
}

// Job ids may carry more than digits ("1234[7]", "1234.server"): the leading ones count.
std::string leading_digits(const std::string& text) {
  const auto end =
      std::find_if_not(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
  return {text.begin(), end};
}

int last_digits(const Variables& v, const std::string& name, size_t count) {
  const std::string digits = leading_digits(v.text(name));
  if (digits.empty()) v.wrong(name, "a job's number", cat("'", v.text(name), "'"));
  return std::stoi(digits.substr(digits.size() - std::min(digits.size(), count)));
}

}  // namespace

bool is_slurm(const Lookup& lookup) {
  const Variables v(lookup, "slurm", "");
  if (!v.has("SLURM_NTASKS") || v.has("OMPI_COMM_WORLD_SIZE")) return false;
  const std::string job = v.first_of({"SLURM_JOB_NAME"});
  if (job != "bash" && job != "interactive") return true;
  // srun within such a job, or of a script for bash, starts tasks; with --pty, it starts a shell.
  return v.number_or("SLURM_STEP_NUM_TASKS", 1, kMostRanks, 1) > 1 && !v.has("SLURM_PTY_PORT");
}

ClusterEnvironment slurm(const Lookup& lookup) {
  const Variables v(lookup, "slurm",
                    "start the program with srun, or set CAIRN_ENVIRONMENT=single to ignore SLURM");
  ClusterEnvironment e;
  e.name = "slurm";
  e.world_size = v.number("SLURM_NTASKS", 1, kMostRanks);
  // Of the step, if srun made one, else of the job: a step may use some of the job's nodes.
  const std::string tasks = v.first_of({"SLURM_STEP_TASKS_PER_NODE"});
  if (e.world_size > 1 && tasks.empty() && !v.has("SLURM_NTASKS_PER_NODE"))
    fail(
        "slurm: SLURM_NTASKS_PER_NODE must be set where SLURM_NTASKS is above 1, got nothing with "
        "SLURM_NTASKS=",
        e.world_size, "; start the program with srun, or give --ntasks-per-node=", e.world_size,
        " instead of --ntasks");
  e.rank = v.number("SLURM_PROCID", 0, e.world_size - 1);
  const char* nodes = v.has("SLURM_STEP_NUM_NODES") ? "SLURM_STEP_NUM_NODES"
                      : v.has("SLURM_NNODES")       ? "SLURM_NNODES"
                                                    : "SLURM_JOB_NUM_NODES";
  e.num_nodes = v.number_or(nodes, 1, e.world_size, 1);
  e.node_rank = v.number_or("SLURM_NODEID", 0, e.num_nodes - 1, 0);
  if (tasks.empty()) {
    e.local_world_size = v.number_or("SLURM_NTASKS_PER_NODE", 1, e.world_size, 1);
    if (e.local_world_size * e.num_nodes < e.world_size)
      v.wrong("SLURM_NTASKS",
              cat("at most nodes x SLURM_NTASKS_PER_NODE = ", e.local_world_size * e.num_nodes),
              std::to_string(e.world_size));
  } else {
    const std::vector<int> counts = expand_counts(tasks);
    if (static_cast<int>(counts.size()) != e.num_nodes)
      v.wrong("SLURM_STEP_TASKS_PER_NODE", cat("of ", e.num_nodes, " nodes"), cat("'", tasks, "'"));
    e.local_world_size = counts[static_cast<size_t>(e.node_rank)];
  }
  e.local_rank = v.number("SLURM_LOCALID", 0, e.local_world_size - 1);
  const std::string hosts =
      v.first_of({"SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"});
  if (e.num_nodes > 1 && hosts.empty()) v.text("SLURM_NODELIST");
  e.master_address =
      address_or(v, e.num_nodes, e.num_nodes > 1 ? expand_hosts(hosts).front() : std::string());
  const char* job = v.has("SLURM_JOB_ID") ? "SLURM_JOB_ID" : "SLURM_JOBID";
  e.master_port = port_or(v, 0);
  if (e.master_port == 0) e.master_port = 15000 + last_digits(v, job, 4);
  e.run_id = cat(v.text(job), ".", v.first_of({"SLURM_STEP_ID", "SLURM_STEPID"}));
  e.secret = secret_or_known(v, e.run_id, v.first_of({"SLURM_JOB_UID"}));
  return e;
}

bool is_lsf(const Lookup& lookup) {
  const Variables v(lookup, "lsf", "");
  return v.has("LSB_JOBID") && v.has("LSB_DJOB_RANKFILE") && v.has("JSM_NAMESPACE_SIZE");
}

ClusterEnvironment lsf(const Lookup& lookup) {
  const Variables v(lookup, "lsf",
                    "start the program with jsrun, or set CAIRN_ENVIRONMENT=single to ignore LSF");
  ClusterEnvironment e;
  e.name = "lsf";
  e.world_size = v.number("JSM_NAMESPACE_SIZE", 1, kMostRanks);
  e.rank = v.number("JSM_NAMESPACE_RANK", 0, e.world_size - 1);
  e.local_rank = v.number("JSM_NAMESPACE_LOCAL_RANK", 0, e.world_size - 1);
  // One host a line, once for each slot; the first line is the host that launches.
  const std::string path = v.text("LSB_DJOB_RANKFILE");
  std::ifstream file(path);
  std::vector<std::string> hosts;
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (!line.empty() && std::find(hosts.begin(), hosts.end(), line) == hosts.end())
      hosts.push_back(line);
  }
  if (hosts.empty()) v.wrong("LSB_DJOB_RANKFILE", "a file that lists hosts", cat("'", path, "'"));
  e.num_nodes = static_cast<int>(hosts.size());
  e.local_world_size = v.number_or("JSM_NAMESPACE_LOCAL_SIZE", 1, e.world_size,
                                   (e.world_size + e.num_nodes - 1) / e.num_nodes);
  const std::string here = v.text("HOSTNAME");
  // One of both may carry its domain.
  const auto same = [](const std::string& a, const std::string& b) {
    return a == b || a == b.substr(0, b.find('.')) || b == a.substr(0, a.find('.'));
  };
  const auto at = std::find_if(hosts.begin(), hosts.end(),
                               [&](const std::string& host) { return same(host, here); });
  if (at == hosts.end()) v.wrong("HOSTNAME", cat("a host of ", path), cat("'", here, "'"));
  e.node_rank = static_cast<int>(at - hosts.begin());
  e.master_address = address_or(v, e.num_nodes, hosts.front());
  e.master_port = port_or(v, 10000 + last_digits(v, "LSB_JOBID", 3));
  e.run_id = v.text("LSB_JOBID");
  e.secret = secret_or_known(v, e.run_id);
  return e;
}

bool is_mpi(const Lookup& lookup) {
  const Variables v(lookup, "mpi",
                    "start the program with mpirun, or set CAIRN_ENVIRONMENT=single to ignore MPI");
  return v.number_or("OMPI_COMM_WORLD_SIZE", 1, kMostRanks, 1) > 1 ||
         v.number_or("PMI_SIZE", 1, kMostRanks, 1) > 1;
}

namespace {

// "371916800.0;tcp://192.0.2.2,10.0.0.2:33157;tcp6://…" is where mpirun runs: 192.0.2.2.
std::string mpirun_host(const std::string& uri) {
  const std::string start = "tcp://";
  const size_t at = uri.find(start);
  if (at == std::string::npos) return "";
  const size_t host = at + start.size();
  return uri.substr(host, uri.find_first_of(",:;", host) - host);
}

}  // namespace

// MPI tells no rank of the node. Ranks are taken to fill one node after the other, as mpirun does
// unless it is told otherwise; node_rank is then only a name for the host.
ClusterEnvironment mpi(const Lookup& lookup) {
  const Variables v(lookup, "mpi",
                    "start the program with mpirun (which passes more variables on with -x NAME)");
  ClusterEnvironment e;
  e.name = "mpi";
  const bool open = v.has("OMPI_COMM_WORLD_SIZE");
  e.world_size = v.number(open ? "OMPI_COMM_WORLD_SIZE" : "PMI_SIZE", 1, kMostRanks);
  e.rank = v.number(open ? "OMPI_COMM_WORLD_RANK" : "PMI_RANK", 0, e.world_size - 1);
  e.local_world_size =
      v.number(open ? "OMPI_COMM_WORLD_LOCAL_SIZE" : "MPI_LOCALNRANKS", 1, e.world_size);
  e.local_rank =
      v.number(open ? "OMPI_COMM_WORLD_LOCAL_RANK" : "MPI_LOCALRANKID", 0, e.local_world_size - 1);
  e.num_nodes = (e.world_size + e.local_world_size - 1) / e.local_world_size;
  e.num_nodes = v.number_or("OMPI_MCA_orte_num_nodes", 1, e.world_size, e.num_nodes);
  e.node_rank = std::min(e.rank / e.local_world_size, e.num_nodes - 1);
  // mpirun usually runs on the first host of its list. A wrong guess shows at once, since rank 0
  // cannot listen there.
  e.master_address = address_or(v, e.num_nodes, mpirun_host(v.first_of({"OMPI_MCA_orte_hnp_uri"})));
  if (e.master_address.empty()) v.text("MASTER_ADDR");
  const std::string job = v.first_of(
      {kRunIdVariable, "OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", "PMI_JOBID", "PMI_PORT"});
  e.master_port = port_or(v, job.empty() ? 0 : 25000 + static_cast<int>(hash_of(job) % 5000));
  if (e.master_port == 0) v.text("MASTER_PORT");
  e.run_id = job.empty() ? cat("port ", e.master_port) : job;
  // 128 random bits that mpirun gives to all ranks of a job.
  e.secret = secret_or_known(v, e.run_id, v.first_of({"OMPI_MCA_orte_precondition_transports"}));
  return e;
}

}  // namespace cairn::dist::detail
