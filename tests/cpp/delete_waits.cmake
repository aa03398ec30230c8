# Each wait of swap and transfer, deleted in turn: a program that must then fail.
#
# A wait is a call of synchronize(), wait() or of the driver call behind one. They
# are found in the sources as they are, so that a wait added there must be missed by a test as well.
set(wait_patterns
  "[a-z_]+\\.(synchronize|wait)\\(\\)"
  "static_cast<void>\\(driver_->stream_synchronize\\([^;]*\\)\\)"
  "GPUPOOL_CALL\\(driver_, (context_synchronize|stream_synchronize|event_synchronize|stream_wait_event)[^;]*\\)")
file(GLOB wait_sources ${PROJECT_SOURCE_DIR}/csrc/swap/*.cpp ${PROJECT_SOURCE_DIR}/csrc/transfer/*.cpp)
set(deleted_waits 0)

foreach(source ${wait_sources})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  get_filename_component(stem ${source} NAME_WE)
  set(tests schedules_objects)
  if(stem STREQUAL page_slabs)  # of no model's schedule
    set(tests page_slabs_objects)
  endif()
  file(READ ${source} rest)
  set(before "")
  set(nth 0)
  while(TRUE)
    # The first wait in what is left.
    set(first -1)
    foreach(pattern ${wait_patterns})
      if("${rest}" MATCHES "${pattern}")
        string(FIND "${rest}" "${CMAKE_MATCH_0}" at)
        if(first EQUAL -1 OR at LESS first)
          set(first ${at})
          set(wait "${CMAKE_MATCH_0}")
        endif()
      endif()
    endforeach()
    if(first EQUAL -1)
      break()
    endif()
    string(LENGTH "${wait}" length)
    string(SUBSTRING "${rest}" 0 ${first} head)
    math(EXPR behind "${first} + ${length}")
    string(SUBSTRING "${rest}" ${behind} -1 tail)
    math(EXPR nth "${nth} + 1")
    math(EXPR deleted_waits "${deleted_waits} + 1")

    set(name without_${stem}_wait_${nth})
    set(mutant ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
    file(CONFIGURE OUTPUT ${mutant} CONTENT "@before@@head@/* deleted */@tail@" @ONLY)
    # Its objects come before the library's and define the same names, so the library's stay out.
    add_executable(${name} $<TARGET_OBJECTS:${tests}> ${mutant})
    target_link_libraries(${name} PRIVATE gpupool_check)
    add_test(NAME ${name} COMMAND ${CMAKE_COMMAND}
      -D program=$<TARGET_FILE:${name}> -D "wait=${wait}" -P ${CMAKE_CURRENT_SOURCE_DIR}/must_fail.cmake)
    set_tests_properties(${name} PROPERTIES TIMEOUT 300)
    string(APPEND before "${head}${wait}")
    set(rest "${tail}")
  endwhile()
endforeach()
message(STATUS "waits of swap and transfer to be deleted in turn: ${deleted_waits}")
if(deleted_waits LESS 16)
  message(FATAL_ERROR "only ${deleted_waits} waits were found: the patterns no longer fit")
endif()
