/* sha256.h - SHA-256 by libcrypto; the only home of openssl headers. Any thread. */
#ifndef SLUICE_BASE_SHA256_H
#define SLUICE_BASE_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sha256 { uint8_t bytes[32]; };

/* Hash of the concatenation of n pieces. Never allocates. */
struct sha256_piece { const void *data; size_t len; };
struct sha256 sha256_of(const struct sha256_piece *pieces, size_t n);
void sha256_hex(const struct sha256 *hash, char out[65]);
bool sha256_equal(const struct sha256 *a, const struct sha256 *b);    /* constant time */

#endif
