/* The one-shot context functions are deprecated in favour of EVP, which allocates for every hash; the engine thread hashes
 * prefix keys and must not allocate. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/sha256.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "base/bug.h"

struct sha256 sha256_of(const struct sha256_piece *pieces, size_t n)
{
    struct sha256 hash;
    SHA256_CTX ctx;

    BUG_ON(!SHA256_Init(&ctx));
    for (size_t i = 0; i < n; i++) BUG_ON(!SHA256_Update(&ctx, pieces[i].data, pieces[i].len));
    BUG_ON(!SHA256_Final(hash.bytes, &ctx));
    return hash;
}

void sha256_hex(const struct sha256 *hash, char out[65])
{
    static const char digits[] = "0123456789abcdef";

    for (int i = 0; i < 32; i++) {
        out[2 * i] = digits[hash->bytes[i] >> 4];
        out[2 * i + 1] = digits[hash->bytes[i] & 15];
    }
    out[64] = '\0';
}

bool sha256_equal(const struct sha256 *a, const struct sha256 *b) { return !CRYPTO_memcmp(a->bytes, b->bytes, 32); }
