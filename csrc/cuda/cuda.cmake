# The CUDA back end: a shared library of its own beside the extension module, which loads it where a driver is. The CUDA
# runtime is linked statically, so that the library needs nothing but the driver.
set(GRISTMILL_CUDA AUTO CACHE STRING "Build the CUDA back end: AUTO (where nvcc is found), ON, OFF")
set_property(CACHE GRISTMILL_CUDA PROPERTY STRINGS AUTO ON OFF)

if(GRISTMILL_CUDA STREQUAL "OFF" OR GRISTMILL_SANITIZE)
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(GRISTMILL_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATH_SUFFIXES bin PATHS /usr/local/cuda/bin /opt/cuda/bin)
  if(GRISTMILL_NVCC)
    set(CMAKE_CUDA_COMPILER ${GRISTMILL_NVCC})
  elseif(GRISTMILL_CUDA STREQUAL "AUTO")
    message(STATUS "gristmill: no nvcc was found, building for the CPU only (GRISTMILL_CUDA=AUTO)")
    return()
  endif()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # The GPUs of this machine, or where there is none every supported one, and code for the driver to compile for others.
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed AND capabilities MATCHES "^[0-9.\n]+$")
    string(REPLACE "." "" capabilities "${capabilities}")
    string(REPLACE "\n" ";" capabilities "${capabilities}")
    list(REMOVE_DUPLICATES capabilities)
    list(TRANSFORM capabilities APPEND "-real")
    list(TRANSFORM capabilities REPLACE "^90-real$" "90a-real")
    set(CMAKE_CUDA_ARCHITECTURES ${capabilities})
  else()
    set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 90-virtual)
  endif()
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know that nvcc has C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
message(STATUS "gristmill: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")

file(GLOB GRISTMILL_CUDA_SOURCES CONFIGURE_DEPENDS
  csrc/cuda/*.cu csrc/cuda/*.cpp csrc/cuda/driver/runtime.cu)
add_library(gristmill_cuda_objects STATIC ${GRISTMILL_CUDA_SOURCES})
set_target_properties(gristmill_cuda_objects PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 20)
target_link_libraries(gristmill_cuda_objects PUBLIC gristmill_objects)
# No contraction, as on the host: the emulation's results are then the device's.
target_compile_options(gristmill_cuda_objects PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -Xcompiler=-fvisibility=hidden,-Wall -Xcudafe=--diag_suppress=177>)

# Code for sm_90a has instructions that no other code has: whether it is there decides which kernels are chosen.
if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a")
  target_compile_definitions(gristmill_cuda_objects PRIVATE GRISTMILL_CUDA_SM90A)
endif()

add_library(gristmill_cuda MODULE csrc/cuda/driver/entry.cpp)
set_target_properties(gristmill_cuda PROPERTIES
  PREFIX "" OUTPUT_NAME "_cuda" LINKER_LANGUAGE CUDA CUDA_RUNTIME_LIBRARY Static)
target_link_libraries(gristmill_cuda PRIVATE gristmill_cuda_objects)
target_link_options(gristmill_cuda PRIVATE -Wl,--no-undefined -Wl,--exclude-libs,ALL)
install(TARGETS gristmill_cuda LIBRARY DESTINATION gristmill)
