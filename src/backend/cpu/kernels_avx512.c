/* kernels_avx512.c - the inner loops of kernels_body.h for AVX-512 (flags: CMakeLists.txt). */
#if defined(__x86_64__)
#define KERNELS_TABLE cpu_kernels_avx512
#define KERNELS_NAME "AVX-512"
#include "kernels_body.h"
#else
enum { KERNELS_NOT_HERE };             /* a translation unit may not be empty */
#endif
