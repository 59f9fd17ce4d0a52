/* malloc_guard.c - aborts when the engine thread allocates after READY (the thread then carries the name
 * "engine-step"). As a library for LD_PRELOAD around sluice-engine, or included by a test program. glibc only; not with
 * sanitizers, which bring their own allocator. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);

static _Thread_local bool guarded __attribute__((tls_model("initial-exec")));

static void check(void)
{
    static const char message[] = "malloc_guard: allocation on the engine thread\n";

    if (!guarded) return;
    guarded = false;
    (void)!write(STDERR_FILENO, message, sizeof message - 1);
    abort();
}

void *malloc(size_t size)
{
    check();
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    check();
    return __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
    check();
    return __libc_realloc(old, size);
}

int pthread_setname_np(pthread_t thread, const char *name)
{
    int (*next)(pthread_t, const char *) = NULL;
    void *symbol = dlsym(RTLD_NEXT, "pthread_setname_np");

    memcpy(&next, &symbol, sizeof next);
    if (pthread_equal(thread, pthread_self())) guarded = !strcmp(name, "engine-step");
    return next ? next(thread, name) : 0;
}
