# Included when OSCARKV_CUDA is on.
# oscarkv_cuda_library(NAME kernels_cuda SRCS a.cu b.cc [DEPS ...])
#   A shared library with alias oscarkv::<NAME>, with machine code for sm_80 and sm_90a. The CUDA
#   runtime is linked into it, so it loads on a machine without a GPU or driver (calls then report
#   it), and a program may open it at run time instead of linking it.
if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
  set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # given below: CMake 3.25 would ask for one list without the 'a'
enable_language(CUDA)
# CMake 3.25.1 does not know this nvcc's option for C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
find_package(CUDAToolkit REQUIRED)
set(OSCARKV_CUDA_CODE
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
    CACHE STRING "Machines that CUDA files are compiled for, as nvcc's options")

function(oscarkv_cuda_options target)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:${OSCARKV_CUDA_CODE} --expt-relaxed-constexpr -Xcompiler=-Wall>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${OSCARKV_WERROR}>>:-Werror=all-warnings>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter>)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()

function(oscarkv_cuda_library)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  add_library(oscarkv_${A_NAME} SHARED ${A_SRCS})
  oscarkv_cuda_options(oscarkv_${A_NAME})
  target_link_libraries(oscarkv_${A_NAME} PUBLIC ${A_DEPS})
  target_include_directories(oscarkv_${A_NAME} PUBLIC ${CMAKE_SOURCE_DIR})
  add_library(oscarkv::${A_NAME} ALIAS oscarkv_${A_NAME})
endfunction()
