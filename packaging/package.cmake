# package.cmake - `cmake --build --preset cuda --target package` makes dist/sluice-VERSION-linux-ARCH[-cudaN].tar.gz: bin/ lib/
# share/, to be unpacked anywhere on a host with a glibc as new as the building machine's.
# lib/ holds every shared library that the programs need and that is not glibc's; what these need in turn too. It is found by a
# relative run path, of the old kind (RPATH): a RUNPATH would not be asked for what the libraries themselves need.
# Not in it: the C++ runtime and libgcc (linked statically), the CUDA runtime (so, too), cuBLASLt and NCCL, which the engine
# opens at run time from the host's CUDA install, and only on a GPU.
set(glibc "ld-linux|linux-vdso|libc\\.so|libm\\.so|libpthread\\.so|libdl\\.so|librt\\.so|libresolv\\.so|libutil\\.so|libanl\\.so|libmvec\\.so")
set(programs sluiced sluice-engine sluice)

install(TARGETS ${programs} RUNTIME_DEPENDENCY_SET dependencies RUNTIME DESTINATION bin)
install(RUNTIME_DEPENDENCY_SET dependencies PRE_EXCLUDE_REGEXES "${glibc}" POST_EXCLUDE_REGEXES "/(${glibc})" LIBRARY DESTINATION lib)
install(DIRECTORY configs packaging/examples docs DESTINATION share/sluice)
install(FILES packaging/sluiced.service DESTINATION share/sluice)
install(FILES README.md LICENSE DESTINATION .)

set(CPACK_GENERATOR TGZ)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_DIRECTORY ${CMAKE_SOURCE_DIR}/dist)
string(TOLOWER "sluice-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}" CPACK_PACKAGE_FILE_NAME)
if(have_cuda)
  string(APPEND CPACK_PACKAGE_FILE_NAME "-cuda${CUDAToolkit_VERSION_MAJOR}")
endif()
include(CPack)
