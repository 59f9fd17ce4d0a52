/* json_read.c - typed look-ups over a tree that json_guard.c made (json_guard.h: how repaired values are kept). */
#include "json_guard.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

const struct cJSON *json_get_raw(const struct cJSON *object, const char *key)
{
    if (!cJSON_IsObject(object)) return NULL;
    for (const cJSON *item = object->child; item; item = item->next) {
        if (item->string && strcmp(item->string, key) == 0) return item;
    }
    return NULL;
}

const struct cJSON *json_get(const struct cJSON *object, const char *key)
{
    const cJSON *item = json_get_raw(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

bool json_is_int(const struct cJSON *item)
{
    if (cJSON_IsRaw(item)) return true;
    return cJSON_IsNumber(item) && isfinite(item->valuedouble) && item->valuedouble == floor(item->valuedouble);
}

bool json_is_written_real(const struct cJSON *item) { return cJSON_IsNumber(item) && (item->type & JSON_REAL_FLAG); }

bool json_is_big_int(const struct cJSON *item)
{
    return json_is_int(item) && (cJSON_IsRaw(item) || fabs(item->valuedouble) > 0x1p53);
}

const char *json_kind(const struct cJSON *item)
{
    if (cJSON_IsString(item)) return "string";
    if (cJSON_IsObject(item)) return "object";
    if (cJSON_IsArray(item)) return "array";
    if (cJSON_IsBool(item)) return "boolean";
    if (json_is_int(item)) return "integer";
    return cJSON_IsNumber(item) ? "number" : "null";
}

int json_int64(const struct cJSON *item, int64_t *value)
{
    if (!json_is_int(item)) return ERR_TYPE;
    if (cJSON_IsRaw(item)) {
        char *end;
        errno = 0;
        long long exact = strtoll(item->valuestring, &end, 10);
        if (errno != 0 || *end != '\0') return ERR_TYPE;
        *value = exact;
        return 0;
    }
    if (item->valuedouble < -0x1p63 || item->valuedouble >= 0x1p63) return ERR_TYPE;
    *value = (int64_t)item->valuedouble;
    return 0;
}

static bool is_tagged(const struct cJSON *item)
{
    return item->valueint > 0 && item->valuedouble == json_nul_tag(item->valuestring);
}

int json_string(const struct cJSON *item, const char **text, size_t *len)
{
    if (!cJSON_IsString(item)) return ERR_TYPE;
    *text = item->valuestring;
    *len = is_tagged(item) ? (size_t)item->valueint : strlen(item->valuestring);
    return 0;
}

bool json_has_nul(const struct cJSON *item)
{
    return cJSON_IsString(item) && is_tagged(item);
}
