#include "auth.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"

enum { SHORT_KEY_BYTES = 16 };

static struct sha256 hash_of(const char *key, size_t len)
{
    struct sha256_piece piece = { key, len };
    return sha256_of(&piece, 1);
}

/* "name:key", or a bare key, which is named by its place. */
static int add_key(struct key_ring *ring, const char *item, struct err *err)
{
    const char *colon = strchr(item, ':'), *key = colon ? colon + 1 : item;
    size_t name_len = colon ? (size_t)(colon - item) : 0;

    if (!*key) return err_set(err, ERR_CONFIG, "api_keys: an empty key");
    if (name_len >= AUTH_NAME_MAX)
        return err_set(err, ERR_CONFIG, "api_keys: a name of %zu bytes, at most %d", name_len, AUTH_NAME_MAX - 1);
    if (ring->n == AUTH_MAX_KEYS) return err_set(err, ERR_CONFIG, "api_keys: more than %d keys", AUTH_MAX_KEYS);
    struct api_key *grown = realloc(ring->keys, (ring->n + 1) * sizeof *grown);
    if (!grown) return err_set(err, ERR_NO_MEMORY, "out of memory");
    ring->keys = grown;
    struct api_key *slot = &ring->keys[ring->n++];
    slot->hash = hash_of(key, strlen(key));
    if (name_len) snprintf(slot->name, sizeof slot->name, "%.*s", (int)name_len, item);
    else snprintf(slot->name, sizeof slot->name, "key-%zu", ring->n);
    if (strlen(key) < SHORT_KEY_BYTES)
        log_warn("short_api_key", "the API key %s has fewer than %d bytes", slot->name, SHORT_KEY_BYTES);
    return 0;
}

int key_ring_init(struct key_ring *ring, const struct config *config, struct err *err)
{
    int rc = 0;

    *ring = (struct key_ring){ 0 };
    for (size_t i = 0; rc == 0 && i < config->api_keys.n; i++) rc = add_key(ring, config->api_keys.items[i], err);
    if (config->admin_api_key && config->admin_api_key[0]) {
        ring->has_admin = true;
        ring->admin = hash_of(config->admin_api_key, strlen(config->admin_api_key));
    }
    if (rc < 0) key_ring_release(ring);
    return rc;
}

void key_ring_release(struct key_ring *ring)
{
    free(ring->keys);
    *ring = (struct key_ring){ 0 };
}

bool key_ring_allows(const struct key_ring *ring, const char *value, size_t len, char name[AUTH_NAME_MAX])
{
    static const char scheme[] = "Bearer ";
    size_t scheme_len = sizeof scheme - 1;
    const struct api_key *found = NULL;

    name[0] = '\0';
    if (ring->n == 0) return true;
    if (!value || len <= scheme_len || strncasecmp(value, scheme, scheme_len) != 0) return false;
    while (scheme_len < len && value[scheme_len] == ' ') scheme_len++;
    struct sha256 hash = hash_of(value + scheme_len, len - scheme_len);
    for (size_t i = 0; i < ring->n; i++) {
        if (sha256_equal(&hash, &ring->keys[i].hash)) found = &ring->keys[i];   /* goes on: the time says nothing */
    }
    bool admin = ring->has_admin && sha256_equal(&hash, &ring->admin);
    if (found || admin) snprintf(name, AUTH_NAME_MAX, "%s", found ? found->name : "admin");
    return found || admin;
}
