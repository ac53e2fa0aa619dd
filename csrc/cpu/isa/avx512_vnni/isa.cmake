# AVX-512 (F, BW, VL, DQ) with VNNI's int8 dot products: Cascade Lake, Ice Lake, Zen 4 and later.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  # GCC up to 12 warns of its own intrinsics, which spell an undefined register as a variable set to itself.
  set_source_files_properties(csrc/cpu/isa/avx512_vnni/kernels.cpp PROPERTIES COMPILE_OPTIONS
    "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-fno-tree-slp-vectorize;-mfma;-mf16c;-mprefer-vector-width=512;$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>${gristmill_light_checks}")
  target_sources(gristmill_objects PRIVATE csrc/cpu/isa/avx512_vnni/kernels.cpp)
  target_compile_definitions(gristmill_objects PRIVATE GRISTMILL_HAS_AVX512_VNNI)
endif()
