// Children that ranks fork: they have no say in the group.
#include <map>

#include "cairn/dist/launcher.h"
#include "tests/catch.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;

TEST_CASE("dist: a forked child neither takes its parent's place in a group nor disturbs it") {
  const std::vector<std::vector<std::string>> groups = {
      {"--backend", "shm"}, {"--backend", "ring"}, {"--backend", "ring", "--hosts", "001"}};
  for (const auto& group : groups)
    for (const int rank : {0, 1}) {
      LaunchOptions options{.workers = 3};
      options.program = {std::string(CAIRN_BIN_DIR) + "/dist_fork", "--rank", std::to_string(rank)};
      options.program.insert(options.program.end(), group.begin(), group.end());
      std::map<int, std::string> out;
      options.show = [&](const OutputLine& line) {
        out[line.rank] += cat(line.text, "\n");
        return "";
      };
      const LaunchResult result = launch(options);
      INFO(group.back() << ", rank " << rank << ": " << result.text() << "\n" << out[rank]);
      CHECK(result.exit_status == 0);
      for (int r = 0; r < 3; ++r) CHECK_THAT(out[r], Contains("sums were right"));

      int child = 0, parent = 0, status = -1, took = 0;
      const size_t end = out[rank].find("child ", out[rank].rfind("\nchild ") + 1);
      REQUIRE(end != std::string::npos);
      REQUIRE(std::sscanf(out[rank].c_str() + end, "child %d of %d ended with %d after %d", &child,
                          &parent, &status, &took) == 4);
      CHECK(status == 0);
      CHECK(took < 5000);  // of a time-out of 20 s
      const std::string name = group.size() > 2 ? "world/on hosts" : "world";
      const std::string whose =
          cat(": it belongs to process ", parent, ", got a call in its child ", child, "; make ");
      CHECK_THAT(out[rank], Contains(cat("child: process group '", name, "'", whose,
                                         "a group of its own there\n")));
      CHECK_THAT(out[rank], Contains("child: store: connection to 127.0.0.1") &&
                                Contains(cat(whose, "one of its own there\n")) &&
                                !Contains("no error"));
    }
}
