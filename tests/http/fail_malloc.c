/* fail_malloc.c - LD_PRELOAD library: the N-th allocation from now on fails, once. N is an int64 in the file that
 * SLUICE_FAIL_MALLOC names, mapped shared, so that a test sets it between requests and sees what is left of it: 0 = it failed.
 * glibc only; not with sanitizers, which bring their own allocator. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);

static int64_t *countdown;               /* NULL: never */

__attribute__((constructor)) static void map_countdown(void)
{
    const char *path = getenv("SLUICE_FAIL_MALLOC");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *page = fd >= 0 ? mmap(NULL, sizeof *countdown, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;

    if (fd >= 0) close(fd);
    if (page != MAP_FAILED) countdown = page;
}

static bool fails(void)
{
    if (!countdown || __atomic_load_n(countdown, __ATOMIC_RELAXED) <= 0) return false;
    if (__atomic_sub_fetch(countdown, 1, __ATOMIC_RELAXED) != 0) return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size) { return fails() ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return fails() ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return fails() ? NULL : __libc_realloc(old, size); }
