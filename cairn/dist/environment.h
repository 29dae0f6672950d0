// ClusterEnvironment: which rank of how many this process is, as whoever started it tells.
// Invariant: a pure function of the environment variables (and, under LSF, of the file that one of
// them names); what contradicts itself is an Error of one sentence with a hint.
#pragma once

#include <string>
#include <string_view>

#include "cairn/dist/variables.h"

namespace cairn::dist {

struct ClusterEnvironment {
  // torchelastic, slurm, lsf, mpi, kubeflow, cairn, single
  std::string name = "single";
  int rank = 0, world_size = 1;
  int local_rank = 0, local_world_size = 1;  // among those of this host
  int node_rank = 0, num_nodes = 1;
  // Where rank 0's store listens.
  std::string master_address = "127.0.0.1";
  int master_port = 0;
  std::string run_id, secret;
};

// Of this process. The first that matches:
//   CAIRN_ENVIRONMENT  the one of that name, whatever else is set
//   cairn         CAIRN_LAUNCH, from `cairn launch`; it may itself run within a cluster's job, and
//                 then it is the one that started this process
//   torchelastic  TORCHELASTIC_RUN_ID, from torchrun
//   slurm         SLURM_NTASKS, but for shells (jobs named bash or interactive, unless srun started
//                 several tasks there) and for mpirun within a job, where SLURM's variables are
//                 those of mpirun's daemon
//   lsf           LSB_JOBID, LSB_DJOB_RANKFILE and JSM_NAMESPACE_SIZE
//   mpi           OMPI_COMM_WORLD_SIZE (Open MPI) or PMI_SIZE (MPICH and its kin) above 1
//   torchelastic  WORLD_SIZE, RANK and LOCAL_RANK: torchrun's variables set by hand
//   single        none of these three, or a WORLD_SIZE of 1 without LOCAL_RANK
// Some of these three are an Error that names the others. kubeflow is taken only when it is asked
// for by name.
//
// Ports: MASTER_PORT wherever it is set, but torchrun's own server holds that port, so that Cairn
// takes the one after it; else 15000 + the last four digits of SLURM's job id; 10000 + LSF's job id
// modulo 1000; 25000 + a hash of Open MPI's job id modulo 5000. CAIRN_MASTER_PORT stands above all.
//
// Secret: CAIRN_SECRET, which `cairn launch` sets. Under other launchers, where it is not set, it
// is made of what all ranks know: job id, user, and of Open MPI and torchrun the run's id, which is
// random where they made it (torchrun: with --standalone). Another user of the cluster can guess
// the rest; set CAIRN_SECRET where such users may reach the port. On one host the store listens on
// loopback alone.
ClusterEnvironment detect_environment();
ClusterEnvironment detect_environment(const Lookup& lookup);

// The one of this name.
ClusterEnvironment environment_named(std::string_view name, const Lookup& lookup);

// Error where what the trainer was told does not fit: `devices` per node and `num_nodes`. Anything
// fits a single process, since that one has yet to start others.
void check_layout(const ClusterEnvironment& environment, int devices, int num_nodes);

// What the launcher sets for its children besides torchrun's variables.
inline constexpr const char* kLaunchVariable = "CAIRN_LAUNCH";
inline constexpr const char* kRunIdVariable = "CAIRN_RUN_ID";
inline constexpr const char* kSecretVariable = "CAIRN_SECRET";
inline constexpr const char* kErrorFileVariable = "CAIRN_ERROR_FILE";

}  // namespace cairn::dist
