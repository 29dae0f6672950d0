# Reads the symbols of the static library: every kernel slot must be constant data. One that is filled
# by code at start-up (and so lies in zeroed memory) would be lost when its file is not linked.
execute_process(COMMAND ${NM} -C --defined-only ${LIBRARY} OUTPUT_VARIABLE symbols
                ERROR_QUIET COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[0-9a-f]+ [BbDd] cairn::kernels::[a-z0-9_]+\n" slots "${symbols}")
list(LENGTH slots count)
if(count LESS 40)
  message(FATAL_ERROR "only ${count} kernel slots found in ${LIBRARY}")
endif()
list(FILTER slots INCLUDE REGEX " [Bb] ")
if(slots)
  message(FATAL_ERROR "not constant-initialised: ${slots}")
endif()
message(STATUS "${count} slots are constant data")
