# Runs `program`, which lacks `wait`, and wants one of its tests to say so.
execute_process(
  COMMAND ${CMAKE_COMMAND} -E env GPUPOOL_TEST_STOP=1 ${program}
  RESULT_VARIABLE result OUTPUT_VARIABLE output)
string(REGEX MATCH "FAILED  [^\n]*\n[^\n]*" failure "${output}")
if(NOT result EQUAL 1 OR failure STREQUAL "")
  message(FATAL_ERROR "the deletion of `${wait}` was not caught (${result}):\n${output}")
endif()
message("without `${wait}`:\n${failure}")
