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

# Asked before CMake tries the compiler, which is an error for an architecture that it does not know.
set(gristmill_nvcc ${CMAKE_CUDA_COMPILER})
if(NOT gristmill_nvcc)
  set(gristmill_nvcc $ENV{CUDACXX})
endif()
execute_process(COMMAND ${gristmill_nvcc} --version OUTPUT_VARIABLE gristmill_nvcc_version ERROR_QUIET)
if(gristmill_nvcc_version MATCHES "release ([0-9.]+)" AND CMAKE_MATCH_1 VERSION_LESS 12.3)
  # C++20 would be content with 12.0.
  string(CONCAT gristmill_too_old "gristmill: ${gristmill_nvcc} is of CUDA ${CMAKE_MATCH_1}, programmatic dependent "
    "launches in graphs need 12.3 or later")
  if(GRISTMILL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "${gristmill_too_old}")
  endif()
  message(STATUS "${gristmill_too_old}; building for the CPU only (GRISTMILL_CUDA=AUTO)")
  return()
endif()

# What to compile for GPUs of these compute capabilities (80, 90, ...): nothing for those below 8.0, and code for the
# driver to compile for those that this nvcc does not know.
function(gristmill_cuda_architectures result capabilities)
  execute_process(COMMAND ${gristmill_nvcc} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
  set(architectures "")
  foreach(capability IN LISTS capabilities)
    if(capability LESS 80)
      message(STATUS "gristmill: a GPU of compute capability ${capability} is below 80, the least that is supported")
    elseif(known AND NOT known MATCHES "compute_${capability}\n")
      list(APPEND architectures 90-virtual)
    elseif(capability EQUAL 90)
      list(APPEND architectures 90a-real)
    else()
      list(APPEND architectures ${capability}-real)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES architectures)
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()

set(gristmill_architectures_given ${CMAKE_CUDA_ARCHITECTURES})
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # The GPUs of this machine that the kernels support, or where there is none every supported one, and code for the
  # driver to compile for others.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 90-virtual)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed AND capabilities MATCHES "^[0-9.\n]+$")
    string(REPLACE "." "" capabilities "${capabilities}")
    string(REPLACE "\n" ";" capabilities "${capabilities}")
    list(REMOVE_DUPLICATES capabilities)
    gristmill_cuda_architectures(own "${capabilities}")
    if(own)
      set(CMAKE_CUDA_ARCHITECTURES ${own})
    endif()
  endif()
endif()
if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)90(-real|-virtual)?(;|$)" AND gristmill_architectures_given
    AND NOT CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)90a")
  message(WARNING "gristmill: CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES} has 90 and not 90a: wgmma is in code "
    "for 90a alone, so prompts on an H100 or H200 will be multiplied with mma.sync, which is slower; add 90a-real")
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
