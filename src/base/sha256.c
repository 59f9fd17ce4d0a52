#include "base/sha256.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "base/bug.h"

struct sha256 sha256_of(const struct sha256_piece *pieces, size_t n)
{
    struct sha256 hash;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();

    BUG_ON(!ctx || !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL));
    for (size_t i = 0; i < n; i++) BUG_ON(!EVP_DigestUpdate(ctx, pieces[i].data, pieces[i].len));
    BUG_ON(!EVP_DigestFinal_ex(ctx, hash.bytes, NULL));
    EVP_MD_CTX_free(ctx);
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
