/* auth.h - API keys: kept as SHA-256 only, compared in constant time over all of them (api-contract 10.5).
 * Thread: const once it is built; a reload builds a second ring and changes the two (server.h). */
#ifndef SLUICE_HTTP_AUTH_H
#define SLUICE_HTTP_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include <sluice/config.h>
#include <sluice/err.h>

#include "base/sha256.h"

enum { AUTH_MAX_KEYS = 1024, AUTH_NAME_MAX = 64 };

struct api_key { struct sha256 hash; char name[AUTH_NAME_MAX]; };

struct key_ring {
    struct api_key *keys;
    size_t n;
    bool has_admin;
    struct sha256 admin;         /* opens every route */
};

/* From api_keys (which has the keys of api_keys_file too) and admin_api_key. ERR_CONFIG: an empty key, too many keys. */
int  key_ring_init(struct key_ring *ring, const struct config *config, struct err *err);
void key_ring_release(struct key_ring *ring);
/* value: the Authorization header's, NULL if absent. True when the ring is empty or the key is known; name gets the
 * key's name ("" on an open server). */
bool key_ring_allows(const struct key_ring *ring, const char *value, size_t len, char name[AUTH_NAME_MAX]);

#endif
