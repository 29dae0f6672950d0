// Lists of hosts and of tasks as SLURM writes them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cairn::dist {

// "node[08-10,12],other" is node08 node09 node10 node12 other. Error where it is no such list, or
// one of more than 65536 hosts.
std::vector<std::string> expand_hosts(std::string_view list);

// Tasks on each node: "2(x3),1" is 2 2 2 1. Error where it is no such list.
std::vector<int> expand_counts(std::string_view list);

}  // namespace cairn::dist
