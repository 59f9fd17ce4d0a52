/* json_guard.h - what the validator and the look-ups agree on about repaired values in a cJSON tree.
 * A string that held \u0000: its NULs are real, valueint = bytes, valuedouble = json_nul_tag(valuestring). The tag is
 * bound to the address, so that a cJSON_Duplicate of the item (which strdup's up to the first NUL) is never read past
 * its end. An integer token beyond +-2^53: type cJSON_Raw, valuestring = its digits, valuedouble = the nearest
 * double. */
#ifndef SLUICE_JSON_GUARD_H
#define SLUICE_JSON_GUARD_H

#include <stdint.h>

/* Bit of cJSON's type, which reads its low byte only: a number that was written with a fraction or an exponent. */
enum { JSON_REAL_FLAG = 1 << 16 };

enum { JSON_DEPTH_CAP = 256 };   /* what max_depth is cut to; cJSON recurses once per level */

static inline double json_nul_tag(const char *text)
{
    return (double)((uintptr_t)text & 0xffffffffffffULL);   /* 48 bits: exact in a double */
}

#endif
