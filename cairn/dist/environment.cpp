// Which launcher started this process, and those whose variables are torchrun's.
#include "cairn/dist/environment.h"

#include <array>

#include "cairn/dist/environment_parts.h"
#include "cairn/dist/suggest.h"
#include "cairn/tensor/error.h"

namespace cairn::dist {
namespace {

using detail::kMostRanks;

const char* const kPortHint = "a port is a number from 1 to 65535 that is free on rank 0's host";

ClusterEnvironment torch_like(const Variables& v, const char* name) {
  ClusterEnvironment e;
  e.name = name;
  e.world_size = v.number("WORLD_SIZE", 1, kMostRanks);
  e.rank = v.number("RANK", 0, e.world_size - 1);
  e.local_world_size = v.number_or("LOCAL_WORLD_SIZE", 1, e.world_size, 0);
  e.local_rank =
      v.number("LOCAL_RANK", 0, (e.local_world_size > 0 ? e.local_world_size : e.world_size) - 1);
  const std::string node = v.has("GROUP_RANK") ? "GROUP_RANK" : "NODE_RANK";
  e.node_rank = v.number_or(node, 0, kMostRanks, 0);
  e.master_address = v.first_of({"MASTER_ADDR"});
  // By hand, LOCAL_WORLD_SIZE is easily left out; one host does not need it.
  const bool here = e.master_address.empty() || e.master_address == "localhost" ||
                    e.master_address == "127.0.0.1" || e.master_address == "::1";
  if (e.local_world_size == 0 && !here && e.world_size > 1) v.text("LOCAL_WORLD_SIZE");
  if (e.local_world_size == 0) e.local_world_size = e.world_size;
  e.num_nodes = (e.world_size + e.local_world_size - 1) / e.local_world_size;
  if (v.has("GROUP_WORLD_SIZE")) e.num_nodes = v.number("GROUP_WORLD_SIZE", 1, e.world_size);
  if (e.node_rank >= e.num_nodes)
    v.wrong(node, cat("below the number of nodes, ", e.num_nodes), std::to_string(e.node_rank));
  if (e.master_address.empty() && e.num_nodes > 1) v.text("MASTER_ADDR");
  if (e.master_address.empty()) e.master_address = "127.0.0.1";
  return e;
}

ClusterEnvironment torchelastic(const Lookup& lookup) {
  const Variables v(lookup, "torchelastic",
                    "start the program with torchrun, which sets it, or unset TORCHELASTIC_RUN_ID "
                    "and LOCAL_RANK");
  ClusterEnvironment e = torch_like(v, "torchelastic");
  // 12910 is where Lightning looks when nobody says anything.
  const int port = v.number_or("MASTER_PORT", 1, 65535, 12910);
  // The agent's own store listens on MASTER_PORT for as long as its workers live. Of a port that
  // the system gave, the next one may soon be given away too: those below 32768 are not.
  const bool held = v.first_of({"TORCHELASTIC_USE_AGENT_STORE"}) == "True";
  constexpr int kGiven = 32768;
  const int beside = port < kGiven - 1 ? port + 1 : kGiven / 2 + port % (kGiven / 2);
  e.master_port = v.number_or("CAIRN_MASTER_PORT", 1, 65535, held ? beside : port);
  // A restarted run is another run.
  e.run_id = cat(v.first_of({"TORCHELASTIC_RUN_ID"}), "/",
                 v.number_or("TORCHELASTIC_RESTART_COUNT", 0, 1 << 30, 0), "/", port);
  e.secret = detail::secret_or_known(v, e.run_id);
  return e;
}

ClusterEnvironment kubeflow(const Lookup& lookup) {
  const Variables v(lookup, "kubeflow", "the job's operator sets it in every replica");
  ClusterEnvironment e;
  e.name = "kubeflow";
  e.world_size = v.number("WORLD_SIZE", 1, kMostRanks);
  e.rank = v.number("RANK", 0, e.world_size - 1);
  e.node_rank = e.rank;  // one process a pod
  e.num_nodes = e.world_size;
  e.master_address = v.text("MASTER_ADDR");
  e.master_port = detail::port_or(v, 0);
  if (e.master_port == 0) v.text("MASTER_PORT");
  e.run_id = v.first_of({kRunIdVariable});
  if (e.run_id.empty()) e.run_id = cat(e.master_address, ":", e.master_port);
  e.secret = detail::secret_or_known(v, e.run_id);
  return e;
}

ClusterEnvironment cairn(const Lookup& lookup) {
  const Variables v(lookup, "cairn launch", "start the program with `cairn launch`, which sets it");
  ClusterEnvironment e = torch_like(v, "cairn");
  e.master_port = v.number("MASTER_PORT", 1, 65535);
  e.run_id = v.text(kRunIdVariable);
  e.secret = v.text(kSecretVariable);
  return e;
}

ClusterEnvironment single(const Lookup& lookup) {
  const Variables v(lookup, "single", kPortHint);
  ClusterEnvironment e;
  e.run_id = v.first_of({kRunIdVariable});
  return e;
}

// Without anybody's mark: torchrun's variables set by hand, or none. Those that are set in part are
// an error, since several processes that each think they are alone would overwrite each other's
// files.
ClusterEnvironment by_hand(const Lookup& lookup) {
  std::string set, missing;
  const Variables v(lookup, "environment", "");
  for (const char* name : {"WORLD_SIZE", "RANK", "LOCAL_RANK"}) {
    std::string& list = v.has(name) ? set : missing;
    list += cat(list.empty() ? "" : " and ", name);
  }
  if (missing.empty()) return torchelastic(lookup);
  const Variables half(lookup, "environment",
                       cat("start the program with torchrun or cairn launch, unset ", set,
                           ", or set CAIRN_ENVIRONMENT=kubeflow where a Kubeflow job sets them"));
  // Left over from somewhere, and of one process anyway.
  const bool alone = !v.has("LOCAL_RANK") && half.number_or("WORLD_SIZE", 1, kMostRanks, 2) == 1;
  if (!set.empty() && !alone) half.wrong(missing, "set", "nothing");
  return single(lookup);
}

constexpr std::array kNames = {"torchelastic", "slurm", "lsf",   "mpi",
                               "kubeflow",     "cairn", "single"};

}  // namespace

ClusterEnvironment environment_named(std::string_view name, const Lookup& lookup) {
  if (name == "torchelastic") return torchelastic(lookup);
  if (name == "slurm") return detail::slurm(lookup);
  if (name == "lsf") return detail::lsf(lookup);
  if (name == "mpi") return detail::mpi(lookup);
  if (name == "kubeflow") return kubeflow(lookup);
  if (name == "cairn") return cairn(lookup);
  if (name == "single") return single(lookup);
  fail("environment: name must be ", one_of(kNames), ", got '", name, "'",
       did_you_mean(name, kNames));
}

ClusterEnvironment detect_environment() { return detect_environment(process_variables()); }

ClusterEnvironment detect_environment(const Lookup& lookup) {
  const Variables v(lookup, "environment", "");
  if (const auto name = v.find("CAIRN_ENVIRONMENT")) return environment_named(*name, lookup);
  if (v.has(kLaunchVariable)) return cairn(lookup);
  if (v.has("TORCHELASTIC_RUN_ID")) return torchelastic(lookup);
  if (detail::is_slurm(lookup)) return detail::slurm(lookup);
  if (detail::is_lsf(lookup)) return detail::lsf(lookup);
  if (detail::is_mpi(lookup)) return detail::mpi(lookup);
  return by_hand(lookup);
}

void check_layout(const ClusterEnvironment& e, int devices, int num_nodes) {
  if (e.name == "single") return;
  const bool slurm = e.name == "slurm";
  const std::string ranks = slurm ? "SLURM_LOCALID" : "LOCAL_RANK";
  const std::string per_node = slurm ? "SLURM's tasks per node" : "the processes per node";
  check(e.local_rank < devices, e.name, ": ", ranks, " must be below devices = ", devices, ", got ",
        e.local_rank, "; start ", devices, " processes per node, or set devices to ",
        e.local_world_size);
  check(e.num_nodes == num_nodes, e.name, ": num_nodes must be the number of nodes of the job, ",
        e.num_nodes, ", got ", num_nodes, "; set num_nodes to ", e.num_nodes,
        slurm ? cat(", or ask SLURM for --nodes=", num_nodes) : "");
  check(e.local_world_size == devices, e.name, ": devices must be ", per_node, ", ",
        e.local_world_size, ", got ", devices, "; set devices to ", e.local_world_size,
        slurm ? cat(", or ask SLURM for --ntasks-per-node=", devices) : "");
  check(e.world_size == devices * num_nodes, e.name,
        ": devices x num_nodes must be the world size, ", e.world_size, ", got ", devices, " x ",
        num_nodes, "; all nodes must run as many processes");
}

namespace detail {

int port_or(const Variables& v, int otherwise) {
  return v.number_or("CAIRN_MASTER_PORT", 1, 65535,
                     v.number_or("MASTER_PORT", 1, 65535, otherwise));
}

std::string address_or(const Variables& v, int num_nodes, const std::string& otherwise) {
  const std::string given = v.first_of({"MASTER_ADDR"});
  if (!given.empty()) return given;
  return num_nodes == 1 ? "127.0.0.1" : otherwise;
}

std::string secret_or_known(const Variables& v, const std::string& run_id,
                            const std::string& known) {
  if (const auto secret = v.find(kSecretVariable)) return *secret;
  // Weak, see detect_environment(): it keeps runs apart and strangers' bytes out, not a neighbour
  // who knows the job.
  return cat("known to all ranks: ", known, "/", run_id, "/", v.first_of({"USER", "LOGNAME"}));
}

}  // namespace detail
}  // namespace cairn::dist
