// A trainer of several processes goes on after a run that failed.
#include <map>

#include "cairn/dist/launcher.h"
#include "tests/catch.h"

using namespace cairn;
using Catch::Matchers::Contains;

TEST_CASE("trainer: after a run that failed the processes meet again for the next") {
  const std::string own = "first: data: image 7 must be whole, got half\n";
  for (const char* backend : {"auto", "ring"})
    for (const std::string culprit : {"0", "1", "all", "after"}) {
      std::map<int, std::string> out;
      dist::LaunchOptions options{.workers = 3};
      options.program = {std::string(CAIRN_BIN_DIR) + "/dist_again", culprit, backend};
      options.show = [&](const dist::OutputLine& line) {
        out[line.rank] += cat(line.text, "\n");
        return "";
      };
      const dist::LaunchResult result = dist::launch(options);
      INFO(backend << ", culprit " << culprit << ": " << result.text());
      CHECK(result.exit_status == 0);
      for (int r = 0; r < 3; ++r) {
        INFO("rank " << r << ": " << out[r]);
        if (culprit == "after" && r != 1)
          CHECK_THAT(out[r], !Contains("first: "));
        else if (culprit == "all" || culprit == "after" || culprit == std::to_string(r))
          CHECK_THAT(out[r], Contains(own));
        else
          CHECK_THAT(out[r], Contains("first: ") && Contains("rank " + culprit +
                                                             " failed: data: "
                                                             "image 7 must be whole, got half"));
        const size_t at = out[r].find("parameters:");
        REQUIRE(at != std::string::npos);
        CHECK(out[r].substr(at) == out[0].substr(out[0].find("parameters:")));
      }
    }
}
