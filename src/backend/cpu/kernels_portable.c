/* kernels_portable.c - the inner loops of kernels_body.h for portable C (flags: CMakeLists.txt). */
#define KERNELS_TABLE cpu_kernels_portable
#define KERNELS_NAME "portable C"
#include "kernels_body.h"
