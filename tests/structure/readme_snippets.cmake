# Compiles every ```cpp block of README: a block with a main() is built and linked against the library
# installed in PREFIX; any other is compiled behind a prelude of headers, as declarations or, where
# that fails, as the body of a function.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})

# A semicolon would split the text into a list; brackets and backslashes would join its parts again.
file(READ ${README} text)
string(REPLACE "\\" "<backslash>" text "${text}")
string(REPLACE ";" "<semicolon>" text "${text}")
string(REPLACE "[" "<open>" text "${text}")
string(REPLACE "]" "<close>" text "${text}")
string(REPLACE "\n" ";" text "${text}")

set(count 0)
set(inside FALSE)
set(block "")
set(programs "")
foreach(line IN LISTS text)
  if(NOT inside AND line MATCHES "^```cpp *$")
    set(inside TRUE)
    set(block "")
  elseif(inside AND line MATCHES "^``` *$")
    set(inside FALSE)
    math(EXPR count "${count} + 1")
    string(REPLACE "<semicolon>" ";" block "${block}")
    string(REPLACE "<open>" "[" block "${block}")
    string(REPLACE "<close>" "]" block "${block}")
    string(REPLACE "<backslash>" "\\" block "${block}")
    set(block_${count} "${block}")
  elseif(inside)
    string(APPEND block "${line}\n")
  endif()
endforeach()
if(inside)
  message(FATAL_ERROR "${README}: a code block is not closed")
endif()
if(count EQUAL 0)
  message(FATAL_ERROR "${README} has no cpp block to compile")
endif()

set(prelude "#include \"cairn/cairn.h\"
#include \"cairn/autograd/record.h\"
#include \"cairn/kernels/slot.h\"
#include \"check/op_table.h\"
using namespace cairn;
")
set(compile ${COMPILER} -std=c++20 -fsyntax-only -I${ROOT})
foreach(i RANGE 1 ${count})
  set(file ${WORK}/block_${i}.cpp)
  if(block_${i} MATCHES "int main\\(")
    file(WRITE ${file} "${block_${i}}")
    string(APPEND programs "add_executable(block_${i} block_${i}.cpp)
target_link_libraries(block_${i} PRIVATE cairn::cairn)
")
    continue()
  endif()
  file(WRITE ${file} "${prelude}${block_${i}}")
  execute_process(COMMAND ${compile} ${file} RESULT_VARIABLE failed ERROR_VARIABLE as_declarations)
  if(NOT failed)
    continue()
  endif()
  file(WRITE ${file} "${prelude}void snippet() {\n${block_${i}}}\n")
  execute_process(COMMAND ${compile} ${file} RESULT_VARIABLE failed ERROR_VARIABLE as_statements)
  if(failed)
    message(FATAL_ERROR "${README}: block ${i} does not compile\n${block_${i}}\n"
      "as declarations:\n${as_declarations}\nas statements:\n${as_statements}")
  endif()
endforeach()

if(programs)
  file(WRITE ${WORK}/CMakeLists.txt "cmake_minimum_required(VERSION 3.24)
project(readme LANGUAGES CXX)
find_package(cairn REQUIRED)
${programs}")
  execute_process(
    COMMAND ${CMAKE_COMMAND} -G Ninja -S ${WORK} -B ${WORK}/build -DCMAKE_PREFIX_PATH=${PREFIX}
            -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_FLAGS=${FLAGS}
    COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build COMMAND_ERROR_IS_FATAL ANY)
endif()
message(STATUS "${count} blocks compiled")
