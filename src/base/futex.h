/* futex.h - sleep until a 32-bit word changes. The word is an ordinary atomic: it carries the ordering, the futex only
 * the sleep, so sanitizers see every edge. Any thread. */
#ifndef SLUICE_BASE_FUTEX_H
#define SLUICE_BASE_FUTEX_H

#include <stdatomic.h>
#include <stdint.h>

/* Returns when *word != expected was seen, after a wake, after timeout_ns, or for no reason: the caller looks again.
 * Spins `spins` rounds before it sleeps. */
void futex_wait(_Atomic uint32_t *word, uint32_t expected, int spins, int64_t timeout_ns);
void futex_wake_all(_Atomic uint32_t *word);

/* One round of a loop that spins. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
