# cachalot_library(NAME SRCS a.cc DEPS other_lib PRIVATE_DEPS lib): a static library, target cachalot_NAME.
# A library's DEPS are the only libraries of ours that it may include; tests/architecture holds the direction.
function(cachalot_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  set(target cachalot_${name})
  if(ARG_SRCS)
    add_library(${target} STATIC ${ARG_SRCS})
    target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
    target_link_libraries(${target} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
  else()
    add_library(${target} INTERFACE)
    target_include_directories(${target} INTERFACE $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
    target_link_libraries(${target} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# cachalot_test(NAME SRCS a_test.cc DEPS lib LABELS unit|integration|slow TIMEOUT seconds): one ctest entry per binary.
function(cachalot_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_compile_definitions(${name} PRIVATE
    CACHALOT_SOURCE_DIR="${CMAKE_SOURCE_DIR}" CACHALOT_BINARY_DIR="${CMAKE_BINARY_DIR}/bin")
  cachalot_test_entry(${name} COMMAND ${name} LABELS ${ARG_LABELS} TIMEOUT ${ARG_TIMEOUT})
endfunction()

# cachalot_test_entry(NAME COMMAND program argument... LABELS unit|integration|slow TIMEOUT seconds): a ctest entry. Under a
# sanitizer it has ten times the time, and what the sanitizer says of any of its processes goes to a folder of reports: a
# worker that a test survives by retrying must not hide its report. The entry `sanitizer_reports` fails if there is one.
# history_size: where ThreadSanitizer no longer knows the stack of the earlier access, no suppression can match it.
function(cachalot_test_entry name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "COMMAND;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_test(NAME ${name} COMMAND ${ARG_COMMAND})
  if(CACHALOT_SANITIZE)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 10")
    set(log "log_path=${CACHALOT_SANITIZER_REPORTS}/${name}")
    set_tests_properties(${name} PROPERTIES
      FIXTURES_REQUIRED sanitizer_reports
      ENVIRONMENT "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp:history_size=7:${log};ASAN_OPTIONS=${log};LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0;UBSAN_OPTIONS=print_stacktrace=1:${log}")
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# The entries before and behind those of a sanitizer's preset.
function(cachalot_sanitizer_reports)
  set(CACHALOT_SANITIZER_REPORTS ${CMAKE_BINARY_DIR}/sanitizer_reports CACHE INTERNAL "")
  set(script -DFOLDER=${CACHALOT_SANITIZER_REPORTS} -P ${CMAKE_SOURCE_DIR}/tests/support/sanitizer_reports.cmake)
  add_test(NAME sanitizer_reports_cleared COMMAND ${CMAKE_COMMAND} -DCLEAR=ON ${script})
  add_test(NAME sanitizer_reports COMMAND ${CMAKE_COMMAND} ${script})
  set_tests_properties(sanitizer_reports_cleared PROPERTIES FIXTURES_SETUP sanitizer_reports)
  set_tests_properties(sanitizer_reports PROPERTIES FIXTURES_CLEANUP sanitizer_reports)
endfunction()
