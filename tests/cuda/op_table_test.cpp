// The op table on the emulated GPU: every op and dtype against double precision and the CPU.
#include "check/op_table.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"

using namespace cairn;

TEST_CASE("cuda: op table") {
  const Device gpu(DeviceType::cuda, 0);
  for (const check_table::Entry& entry : check_table::entries()) {
    DYNAMIC_SECTION(entry.op) {
      for (DType dtype : entry.dtypes) {
        // A barrier that is missing shows in one of the two orders.
        for (bool backwards : {false, true}) {
          if (backwards && dtype != entry.dtypes.front()) continue;
          emulator::set_backwards(backwards);
          const check_table::Verdict verdict = check_table::run(entry, dtype, gpu);
          emulator::set_backwards(false);
          for (const std::string& failure : verdict.failures) FAIL_CHECK(failure);
          CHECK(verdict.cases > 0);
        }
      }
      CHECK(emulator::guard_violations() == 0);
    }
  }
}
