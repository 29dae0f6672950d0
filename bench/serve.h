// How a side of the benchmark talks: one JSON object per line on stdin, one on stdout.
// Invariant: every request gets one answer, {"error": …} where it failed.
#pragma once

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

namespace cairn::bench {

// Until {"cmd": "quit"} or the end of the input.
template <class Answer>
void serve(Answer&& answer) {
  std::string line;
  while (std::getline(std::cin, line)) {
    nlohmann::json reply;
    try {
      const nlohmann::json request = nlohmann::json::parse(line);
      if (request.value("cmd", "") == "quit") break;
      reply = answer(request);
    } catch (const std::exception& error) {
      reply = {{"error", error.what()}};
    }
    std::cout << reply.dump() << std::endl;
  }
}

}  // namespace cairn::bench
