// Words for errors about names.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace cairn::dist {

// "a, b or c"
std::string one_of(std::span<const char* const> names);

// "; did you mean 'ring'?", or "" where none of the names is like this one.
std::string did_you_mean(std::string_view name, std::span<const char* const> names);

}  // namespace cairn::dist
