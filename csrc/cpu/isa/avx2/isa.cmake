# AVX2 with FMA and half-precision conversions: Haswell, Zen and later.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(csrc/cpu/isa/avx2/kernels.cpp PROPERTIES COMPILE_OPTIONS
    "-mavx2;-mfma;-mf16c${gristmill_light_checks}")
  target_sources(gristmill_objects PRIVATE csrc/cpu/isa/avx2/kernels.cpp)
  target_compile_definitions(gristmill_objects PRIVATE GRISTMILL_HAS_AVX2)
endif()
