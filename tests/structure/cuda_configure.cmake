# Configures the project with each value of CAIRN_CUDA, with and without what CUDA needs, and reads
# the summary line.
file(REMOVE_RECURSE ${WORK})

# expect(NAME TEXT WORKS OPTION...): configuring must work (or not) and say TEXT.
function(expect name text works)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -G Ninja -S ${ROOT} -B ${WORK}/${name} -DCAIRN_TESTS=OFF
            -DCMAKE_CXX_COMPILER=${COMPILER} ${ARGN}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  string(FIND "${output}" "${text}" at)
  if(at EQUAL -1)
    message(SEND_ERROR "${name}: must say '${text}', said: ${output}")
  endif()
  if(works AND NOT result EQUAL 0)
    message(SEND_ERROR "${name}: must configure, got: ${output}")
  elseif(NOT works AND result EQUAL 0)
    message(SEND_ERROR "${name}: must not configure")
  endif()
endfunction()

expect(off "CUDA: off (CAIRN_CUDA=OFF)" TRUE -DCAIRN_CUDA=OFF)
expect(wrong "CAIRN_CUDA must be AUTO, ON or OFF, got 'MAYBE'" FALSE -DCAIRN_CUDA=MAYBE)
if(NOT HAS_CUDA)
  expect(missing "CAIRN_CUDA=ON needs the CUDA toolkit, got: off (no nvcc found)" FALSE
    -DCAIRN_CUDA=ON)
  expect(auto "CUDA: off (no nvcc found)" TRUE)
  return()
endif()
expect(auto "CUDA: 1" TRUE)
expect(toolkit "off (no nvcc found)" FALSE -DCAIRN_CUDA=ON
  -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON)
expect(parts "no CUDNN (CAIRN_CUDNN=OFF), no NCCL (CAIRN_NCCL=OFF)" TRUE -DCAIRN_CUDNN=OFF
  -DCAIRN_NCCL=OFF)
