# Each wait for the device, deleted in turn: a program that must then fail.
#
# A wait is a call of synchronize(), wait(), ended() or device_ended(), or of the driver call behind
# one; where its answer is looked at, it succeeds without being made. They are found in the sources
# as they are, so that a wait added there must be missed by a test as well.
set(wait_call "(context_synchronize|stream_synchronize|event_synchronize|stream_wait_event)")
# Each with what takes its place.
set(wait_patterns
  "[a-z0-9_]+(\\[[a-z0-9_]+\\])?(\\.|->)(synchronize|wait)\\(\\)" "/* deleted */"
  "static_cast<void>\\(driver_->${wait_call}\\([^;]*\\)\\)" "/* deleted */"
  "GPUPOOL_CALL\\([a-z_.]+, ${wait_call}[^;]*\\)" "/* deleted */"
  "driver_?(->|\\.)${wait_call}\\([a-z_]*\\) == Status::success" "true"
  "[a-z0-9_]+(\\[[a-z0-9_]+\\])?(->|\\.)ended\\(\\)" "true"
  "device_ended\\(\\*driver_\\)" "true")
# What is left of any wait once these are taken out.
set(wait_left "(${wait_call}|(\\.|->)(synchronize|wait|ended)\\(\\)|device_ended\\(\\*)[^\n]*")
set(wait_sources "")
set(wait_headers "")
foreach(room memory transfer image swap)
  file(GLOB sources ${PROJECT_SOURCE_DIR}/csrc/${room}/*.cpp)
  file(GLOB headers ${PROJECT_SOURCE_DIR}/csrc/${room}/*.h)
  list(APPEND wait_sources ${sources})
  list(APPEND wait_headers ${headers})
endforeach()
# The tests that must miss the waits of a file; those of any other are of a model's schedule.
set(wait_tests_arena_slots arena_slots)
set(wait_tests_page_slabs page_slabs in_flight)
set(wait_tests_host_slabs in_flight)
set(wait_tests_supplied_slabs in_flight)
set(wait_tests_slab in_flight)
set(deleted_waits 0)

foreach(source ${wait_sources})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  get_filename_component(stem ${source} NAME_WE)
  set(objects "")
  set(tests in_flight schedules)
  if(DEFINED wait_tests_${stem})
    set(tests ${wait_tests_${stem}})
  endif()
  foreach(test ${tests})
    list(APPEND objects $<TARGET_OBJECTS:${test}_objects>)
  endforeach()
  file(READ ${source} rest)
  set(before "")
  set(others "")
  set(nth 0)
  while(TRUE)
    # The first wait in what is left; the longest of those that begin there.
    set(first -1)
    set(length 0)
    set(patterns ${wait_patterns})
    while(patterns)
      list(POP_FRONT patterns pattern put)
      if("${rest}" MATCHES "${pattern}")
        set(found "${CMAKE_MATCH_0}")
        string(FIND "${rest}" "${found}" at)
        string(LENGTH "${found}" found_length)
        if(first EQUAL -1 OR at LESS first OR (at EQUAL first AND found_length GREATER length))
          set(first ${at})
          set(length ${found_length})
          set(wait "${found}")
          set(instead "${put}")
        endif()
      endif()
    endwhile()
    if(first EQUAL -1)
      break()
    endif()
    string(SUBSTRING "${rest}" 0 ${first} head)
    math(EXPR behind "${first} + ${length}")
    string(SUBSTRING "${rest}" ${behind} -1 tail)
    math(EXPR nth "${nth} + 1")
    math(EXPR deleted_waits "${deleted_waits} + 1")

    set(name without_${stem}_wait_${nth})
    set(mutant ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
    file(CONFIGURE OUTPUT ${mutant} CONTENT "@before@@head@@instead@@tail@" @ONLY)
    # Its objects come before the library's and define the same names, so the library's stay out.
    add_executable(${name} ${objects} ${mutant})
    target_link_libraries(${name} PRIVATE gpupool_check)
    add_test(NAME ${name} COMMAND ${CMAKE_COMMAND}
      -D program=$<TARGET_FILE:${name}> -D "wait=${wait}" -P ${CMAKE_CURRENT_SOURCE_DIR}/must_fail.cmake)
    set_tests_properties(${name} PROPERTIES
      TIMEOUT 300
      ENVIRONMENT GPUPOOL_TEST_DRIVER=host/stepped)
    string(APPEND before "${head}${wait}")
    string(APPEND others "${head}")
    set(rest "${tail}")
  endwhile()
  if("${others}${rest}" MATCHES "${wait_left}")
    message(FATAL_ERROR "${source} waits in a way that is not deleted: ${CMAKE_MATCH_0}")
  endif()
endforeach()
# Those of a header cannot be taken out of one program.
foreach(header ${wait_headers})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${header})
  file(READ ${header} text)
  if("${text}" MATCHES "${wait_left}")
    message(FATAL_ERROR "${header} waits, which only a source should: ${CMAKE_MATCH_0}")
  endif()
endforeach()
message(STATUS "waits for the device to be deleted in turn: ${deleted_waits}")
if(deleted_waits LESS 30)
  message(FATAL_ERROR "only ${deleted_waits} waits were found: the patterns no longer fit")
endif()
