/* kernels_avx2.c - the inner loops of kernels_body.h for AVX2 (flags: CMakeLists.txt). */
#if defined(__x86_64__)
#define KERNELS_TABLE cpu_kernels_avx2
#define KERNELS_NAME "AVX2"
#include "kernels_body.h"
#else
enum { KERNELS_NOT_HERE };             /* a translation unit may not be empty */
#endif
