// A step's value of all processes, made while they are at the same place.
// Invariant: values go by name and reduction, never by the order of calls alone.
#pragma once

#include <string_view>

#include "cairn/trainer/metrics.h"
#include "cairn/trainer/strategy.h"

namespace cairn::trainer {

// Collective: the values of all processes as one, in order of rank; mean weighs all alike. Where
// another process joins another name or reduction, all throw Error; where one does something else,
// CommError names this value in front.
double joined_value(Strategy& strategy, std::string_view name, Reduce how, double value);

}  // namespace cairn::trainer
