# The sources of the matrix products (SHALE_MATMUL_SOURCES) and their flags. Included by the root CMakeLists.txt, which says
# what each instruction set's flags are and turns contraction off.
set(SHALE_MATMUL_SOURCES
    ${SHALE_CPU_DIR}/bind_matmul.cpp
    ${SHALE_CPU_DIR}/linear.cpp
    ${SHALE_CPU_DIR}/repack.cpp
    ${SHALE_CPU_DIR}/kernels_portable.cpp)
set_source_files_properties(${SHALE_CPU_DIR}/kernels_portable.cpp PROPERTIES COMPILE_OPTIONS "-O3")
if(SHALE_X86)
  list(APPEND SHALE_MATMUL_SOURCES
       ${SHALE_CPU_DIR}/kernels_avx2.cpp
       ${SHALE_CPU_DIR}/kernels_avxvnni.cpp
       ${SHALE_CPU_DIR}/kernels_avx512vnni.cpp
       ${SHALE_CPU_DIR}/kernels_amx.cpp)
  set_source_files_properties(${SHALE_CPU_DIR}/kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-O3;${SHALE_AVX2_FLAGS}")
  set_source_files_properties(${SHALE_CPU_DIR}/kernels_avxvnni.cpp
                              PROPERTIES COMPILE_OPTIONS "-O3;${SHALE_AVXVNNI_FLAGS}")
  # GCC 12 takes the deliberately undefined operands in its own avx512fintrin.h for mistakes (GCC bug 105593).
  set_source_files_properties(${SHALE_CPU_DIR}/kernels_avx512vnni.cpp
                              PROPERTIES COMPILE_OPTIONS "-O3;${SHALE_AVX512VNNI_FLAGS};-Wno-maybe-uninitialized")
  set_source_files_properties(
    ${SHALE_CPU_DIR}/kernels_amx.cpp
    PROPERTIES COMPILE_OPTIONS "-O3;${SHALE_AVX512VNNI_FLAGS};-mamx-tile;-mamx-int8;-Wno-maybe-uninitialized")
endif()
