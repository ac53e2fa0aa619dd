# The quantizers' searches, once for each width of vector; formats/search.cpp chooses at run time.
target_sources(gristmill_objects PRIVATE csrc/formats/search/generic.cpp)
set_source_files_properties(csrc/formats/search/generic.cpp PROPERTIES COMPILE_OPTIONS "-fno-math-errno")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_sources(gristmill_objects PRIVATE csrc/formats/search/avx2.cpp csrc/formats/search/avx512.cpp)
  set_source_files_properties(csrc/formats/search/avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mf16c")
  # GCC up to 12 warns of its own intrinsics, which spell an undefined register as a variable set to itself.
  set_source_files_properties(csrc/formats/search/avx512.cpp PROPERTIES COMPILE_OPTIONS
    "-mavx512f;-mavx512bw;$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>")
  target_compile_definitions(gristmill_objects PRIVATE GRISTMILL_SEARCH_X86)
endif()
