// The clusters' own part of detect_environment(), one function each.
#pragma once

#include "cairn/dist/environment.h"

namespace cairn::dist::detail {

inline constexpr int kMostRanks = 1 << 20;

ClusterEnvironment slurm(const Lookup& lookup);
ClusterEnvironment lsf(const Lookup& lookup);
ClusterEnvironment mpi(const Lookup& lookup);

bool is_slurm(const Lookup& lookup);
bool is_lsf(const Lookup& lookup);
bool is_mpi(const Lookup& lookup);

// CAIRN_MASTER_PORT, else MASTER_PORT, else this one.
int port_or(const Variables& variables, int otherwise);
// CAIRN_SECRET, else made of `known`, run id and user.
std::string secret_or_known(const Variables& variables, const std::string& run_id,
                            const std::string& known = "");
// A host of its own talks to itself on loopback; MASTER_ADDR stands above that.
std::string address_or(const Variables& variables, int num_nodes, const std::string& otherwise);

}  // namespace cairn::dist::detail
