/* bug.h - for what cannot happen: abort with file, line and the broken condition. Never for input. */
#ifndef SLUICE_BASE_BUG_H
#define SLUICE_BASE_BUG_H

void bug_abort(const char *file, int line, const char *cond) __attribute__((noreturn));

#define BUG_ON(cond) do { if (__builtin_expect(!!(cond), 0)) bug_abort(__FILE__, __LINE__, #cond); } while (0)

#endif
