/* cmocka_all.h - cmocka wants these in front of it. */
#ifndef SLUICE_TESTS_CMOCKA_ALL_H
#define SLUICE_TESTS_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
