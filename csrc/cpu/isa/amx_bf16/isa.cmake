# AMX's tiles of bfloat16 and int8 on top of AVX-512 with VNNI, BF16 and VBMI: Sapphire Rapids and later. It needs an
# assembler that knows tiles (binutils 2.34, clang 11), whose instructions are written out (tile_registers.h).
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  include(CheckCXXSourceCompiles)
  check_cxx_source_compiles("int main() { asm volatile(\"tdpbf16ps %tmm2, %tmm1, %tmm0\"); }" GRISTMILL_KNOWS_AMX)
  set_source_files_properties(csrc/cpu/isa/amx_bf16/kernels.cpp PROPERTIES COMPILE_OPTIONS
    "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512bf16;-mavx512vbmi;-fno-tree-slp-vectorize;-mfma;-mf16c;-mprefer-vector-width=512;$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>${gristmill_light_checks}")
  if(GRISTMILL_KNOWS_AMX)
    target_sources(gristmill_objects PRIVATE csrc/cpu/isa/amx_bf16/kernels.cpp)
    target_compile_definitions(gristmill_objects PRIVATE GRISTMILL_HAS_AMX_BF16)
  endif()
endif()
