// Every entry of the op table, in each of its dtypes.
#include <string>

#include "cairn/tensor/error.h"
#include "check/op_table.h"
#include "tests/catch.h"

using namespace cairn;

TEST_CASE("autograd: op table") {
  REQUIRE(check_table::entries().size() >= 100);
  for (const auto& entry : check_table::entries()) {
    for (const DType dtype : entry.dtypes) {
      const check_table::Verdict verdict = check_table::run(entry, dtype);
      CHECK(verdict.cases > 0);
      for (const std::string& failure : verdict.failures) FAIL_CHECK(failure);
    }
  }
}
