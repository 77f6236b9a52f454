# Compiler settings that hold for every target.

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Sloppiness: without it ccache refuses precompiled headers. Base and no hash of the folder: a clone at another
  # path finds what this one compiled.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE_PROGRAM})
endif()

find_program(LLD_PROGRAM ld.lld)
if(LLD_PROGRAM)
  add_link_options(-fuse-ld=lld)
endif()

add_compile_options(-Wall -Wextra -Werror=unused-result -Werror=return-type -Wno-missing-field-initializers $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
add_compile_options($<$<CXX_COMPILER_ID:Clang>:-fsized-deallocation>)  # as GCC has it by default
# One fixed arithmetic: an FMA appears only where the code writes one.
add_compile_options(-ffp-contract=off -fpch-preprocess)

if(CACHALOT_SANITIZE)
  add_compile_options(-fsanitize=${CACHALOT_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${CACHALOT_SANITIZE})
  if(CACHALOT_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
    # Clang's check of indirect calls writes differences of addresses that lie apart once a coroutine is split.
    add_compile_options($<$<CXX_COMPILER_ID:Clang>:-fno-sanitize=function>)
  endif()
endif()
