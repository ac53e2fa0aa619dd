# Kernels of formats without a fast path, compiled as the instruction sets' own are.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  foreach(isa avx2 avx512_vnni amx_bf16)
    get_source_file_property(flags ${PROJECT_SOURCE_DIR}/csrc/cpu/isa/${isa}/kernels.cpp
      DIRECTORY ${PROJECT_SOURCE_DIR} COMPILE_OPTIONS)
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/fallback_${isa}.cpp)
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
    if(GRISTMILL_KNOWS_AMX OR NOT isa STREQUAL "amx_bf16")
      target_sources(test_kernels PRIVATE ${source})
    endif()
  endforeach()
endif()
# Only an optimizing compiler inlines everything; a sanitizer adds symbols of its own.
if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT GRISTMILL_SANITIZE)
  add_test(NAME isa_symbols COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/check_isa_symbols.sh ${PROJECT_BINARY_DIR})
endif()
