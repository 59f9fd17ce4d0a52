/* source.c - a path -> the model's configuration and the tensors of all its files, whichever container they come in. */
#include <sluice/loader.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

#include "base/buf.h"
#include "base/bug.h"
#include "base/sha256.h"

#include "files.h"
#include "gguf.h"
#include "model_config.h"
#include "safetensors.h"
#include "tensor_index.h"

enum {
    MAX_SHARDS = 4096,
    MAX_CONFIG_BYTES = 16 << 20,
    MAX_INDEX_BYTES = 256 << 20,
    MAX_TEMPLATE_BYTES = 4 << 20,
};

struct shard {
    char *name;
    int fd;
    uint64_t size;
};

struct model_source {
    enum load_format format;
    struct model_config config;
    int dir_fd;                  /* -1 for a GGUF file */
    struct shard *shards;
    size_t num_shards, cap_shards;
    struct tensor_index index;
    uint64_t bytes;
    struct gguf_file *gguf;      /* NULL for a directory of safetensors */
    uint8_t digest[32];
};

/* ---- files of the model ---- */
/* Takes fd over, also on failure. The shard's position, or an error. */
static int add_shard(struct model_source *src, const char *name, int fd, uint64_t size, struct err *err)
{
    if (src->num_shards == src->cap_shards) {
        size_t cap = src->cap_shards ? src->cap_shards * 2 : 8;
        struct shard *shards = realloc(src->shards, cap * sizeof *shards);
        if (!shards) goto no_memory;
        src->shards = shards;
        src->cap_shards = cap;
    }
    char *copy = strdup(name);
    if (!copy) goto no_memory;
    src->shards[src->num_shards] = (struct shard){ copy, fd, size };
    return (int)src->num_shards++;
no_memory:
    close(fd);
    return err_set(err, ERR_NO_MEMORY, "%s: out of memory", name);
}

static int add_safetensors(struct model_source *src, const char *name, struct err *err)
{
    uint64_t size = 0;
    int fd = open_beneath(src->dir_fd, name, &size, err);
    if (fd == ERR_NOT_FOUND) return err_set(err, ERR_MODEL_FILE, "%s: expected this file, found none", name);
    if (fd < 0) return fd;
    int shard = add_shard(src, name, fd, size, err);
    if (shard < 0) return shard;
    int rc = safetensors_open(&src->index, shard, src->shards[shard].name, fd, size, err);
    return rc < 0 ? rc : shard;
}

/* ---- model.safetensors.index.json ---- */
static const char index_name[] = "model.safetensors.index.json";

static bool is_shard_name(const char *name)
{
    size_t len = strlen(name);
    return len > 12 && len <= 255 && strcmp(name + len - 12, ".safetensors") == 0 && !strchr(name, '/') &&
           name_is_printable(name, len);
}

/* Opens every file that the map names, once. */
static int open_shards(struct model_source *src, const struct cJSON *map, struct str_map *files, struct err *err)
{
    for (const struct cJSON *item = map->child; item; item = item->next) {
        if (!cJSON_IsString(item) || !is_shard_name(item->valuestring)) {
            return err_set(err, ERR_MODEL_FILE,
                           "%s: weight_map: expected names of .safetensors files in this directory", index_name);
        }
        const char *name = item->valuestring;
        if (str_map_get(files, name, strlen(name)) >= 0) continue;
        if (src->num_shards >= MAX_SHARDS) {
            return err_set(err, ERR_MODEL_FILE, "%s: weight_map: expected at most %d files, found more", index_name,
                           (int)MAX_SHARDS);
        }
        int shard = add_safetensors(src, name, err);
        if (shard < 0) return shard;
        if (str_map_put(files, name, strlen(name), shard, NULL) < 0) {
            return err_set(err, ERR_NO_MEMORY, "%s: out of memory", index_name);
        }
    }
    return 0;
}

/* Every tensor of the map must be in the file that the map says. */
static int check_weight_map(const struct model_source *src, const struct cJSON *map, const struct str_map *files,
                            struct err *err)
{
    for (const struct cJSON *item = map->child; item; item = item->next) {
        const struct tensor_info *info = tensor_index_find(&src->index, item->string);
        if (!info || info->file != str_map_get(files, item->valuestring, strlen(item->valuestring))) {
            return err_set(err, ERR_MODEL_FILE, "%s: tensor \"%.100s\": expected in %.100s, found %s", index_name,
                           name_is_printable(item->string, strlen(item->string)) ? item->string : "(unprintable)",
                           item->valuestring, info ? src->shards[info->file].name : "nowhere");
        }
    }
    return 0;
}

static int load_index(struct model_source *src, const char *text, size_t len, struct err *err)
{
    struct cJSON *root = NULL;
    struct str_map files = { 0 };
    struct err why = { 0 };

    int rc = json_parse(text, len, &json_limits_file, &root, &why);
    if (rc < 0) return err_set(err, rc == ERR_NO_MEMORY ? rc : ERR_MODEL_FILE, "%s: %s", index_name, why.message);
    const struct cJSON *map = json_get(root, "weight_map");
    if (!cJSON_IsObject(map)) rc = err_set(err, ERR_MODEL_FILE, "%s: weight_map: expected an object", index_name);
    else if (str_map_init(&files, 64) < 0) rc = err_set(err, ERR_NO_MEMORY, "%s: out of memory", index_name);
    if (rc == 0) rc = open_shards(src, map, &files, err);
    if (rc == 0) rc = check_weight_map(src, map, &files, err);
    str_map_release(&files);
    json_free(root);
    return rc;
}

/* ---- a directory ---- */
static bool exists(int dir_fd, const char *name)
{
    struct stat st;
    return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* The only .gguf of the directory; count tells how many there are. */
static int find_gguf(int dir_fd, char name[256], int *count, struct err *err)
{
    *count = 0;
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int rc = err_sys(err, ERR_MODEL_FILE, "model directory: list");
        if (fd >= 0) close(fd);
        return rc;
    }
    for (const struct dirent *entry; (entry = readdir(dir));) {
        size_t len = strlen(entry->d_name);
        if (len <= 5 || len > 255 || strcmp(entry->d_name + len - 5, ".gguf") != 0) continue;
        memcpy(name, entry->d_name, len + 1);
        ++*count;
    }
    closedir(dir);
    return 0;
}

static int read_hf_config(struct model_source *src, struct err *err)
{
    char *text = NULL;
    size_t len = 0;
    int rc = model_read_file(src->dir_fd, "config.json", MAX_CONFIG_BYTES, &text, &len, err);
    if (rc == ERR_NOT_FOUND) return err_set(err, ERR_MODEL_FILE, "config.json: expected this file, found none");
    if (rc == 0) rc = hf_config_parse(&src->config, text, len, err);
    free(text);
    if (rc < 0) return rc;
    rc = model_read_file(src->dir_fd, "generation_config.json", MAX_CONFIG_BYTES, &text, &len, err);
    if (rc == ERR_NOT_FOUND) return 0;
    if (rc == 0) rc = hf_generation_config_parse(&src->config, text, len, err);
    free(text);
    return rc;
}

static int open_safetensors_dir(struct model_source *src, struct err *err)
{
    char *text = NULL;
    size_t len = 0;
    int rc = read_hf_config(src, err);
    if (rc < 0 || src->format == LOAD_DUMMY) return rc;
    src->format = LOAD_SAFETENSORS;
    if (exists(src->dir_fd, "model.safetensors")) {
        rc = add_safetensors(src, "model.safetensors", err);
        return rc < 0 ? rc : 0;
    }
    rc = model_read_file(src->dir_fd, index_name, MAX_INDEX_BYTES, &text, &len, err);
    if (rc == ERR_NOT_FOUND) {
        return err_set(err, ERR_MODEL_FILE, "expected model.safetensors or %s beside config.json, found neither "
                       "(load_format dummy makes random weights)", index_name);
    }
    if (rc == 0) rc = load_index(src, text, len, err);
    free(text);
    return rc;
}

/* ---- a GGUF file ---- */
/* Takes fd over, also on failure. */
static int open_gguf_file(struct model_source *src, const char *name, int fd, struct err *err)
{
    uint64_t size = 0;
    int rc = regular_file_size(fd, name, &size, err);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    int shard = add_shard(src, name, fd, size, err);
    if (shard < 0) return shard;
    const char *label = src->shards[shard].name;
    if ((rc = gguf_open(&src->gguf, &src->index, fd, size, label, err)) < 0) return rc;
    if ((rc = gguf_model_config(src->gguf, &src->index, label, &src->config, err)) < 0) return rc;
    if (src->format != LOAD_DUMMY) {
        src->format = LOAD_GGUF;
        return 0;
    }
    tensor_index_release(&src->index);
    rc = tensor_index_init(&src->index);
    return rc < 0 ? err_set(err, rc, "%s: out of memory", label) : 0;
}

/* dir_fd stays the source's only if the model is a directory of config.json. */
static int open_directory(struct model_source *src, struct err *err)
{
    char name[256];
    int count = 0;
    bool has_config = exists(src->dir_fd, "config.json");
    bool has_weights = exists(src->dir_fd, "model.safetensors") || exists(src->dir_fd, index_name);

    if (src->format == LOAD_SAFETENSORS || (src->format != LOAD_GGUF && has_config && has_weights)) {
        return open_safetensors_dir(src, err);
    }
    if (src->format == LOAD_DUMMY && has_config) return open_safetensors_dir(src, err);
    int rc = find_gguf(src->dir_fd, name, &count, err);
    if (rc < 0) return rc;
    if (count == 0 && src->format != LOAD_GGUF) return open_safetensors_dir(src, err);   /* says what is missing */
    if (count != 1) {
        return err_set(err, ERR_MODEL_FILE, "model directory: expected exactly one .gguf file, found %d", count);
    }
    uint64_t size = 0;
    int fd = open_beneath(src->dir_fd, name, &size, err);
    if (fd < 0) return fd == ERR_NOT_FOUND ? err_set(err, ERR_MODEL_FILE, "%s: the file is gone", name) : fd;
    close(src->dir_fd);
    src->dir_fd = -1;
    return open_gguf_file(src, name, fd, err);
}

/* ---- the whole ---- */
static int make_digest(struct model_source *src, struct err *err)
{
    const struct model_config *c = &src->config;
    struct buf text = BUF_INIT;

    buf_printf(&text, "%s %d %d %d %d %d %d %d %g %g %d %g\n", c->model_type, c->hidden_size, c->intermediate_size,
               c->num_hidden_layers, c->num_attention_heads, c->num_key_value_heads, c->head_dim, c->vocab_size,
               (double)c->rms_norm_eps, (double)c->rope_theta, (int)c->rope_scaling.type,
               (double)c->rope_scaling.factor);
    for (size_t i = 0; i < src->num_shards; i++) buf_printf(&text, "%" PRIu64 "\n", src->shards[i].size);
    for (size_t i = 0; i < src->index.count; i++) {
        const struct tensor_info *info = &src->index.infos[i];
        buf_printf(&text, "%s %d %" PRIu64, info->name, (int)info->dtype, info->bytes);
        for (int d = 0; d < info->ndim; d++) buf_printf(&text, " %" PRId64, info->shape[d]);
        buf_putc(&text, '\n');
        src->bytes += info->bytes;
    }
    if (text.failed) {
        buf_release(&text);
        return err_set(err, ERR_NO_MEMORY, "model: out of memory");
    }
    struct sha256 hash = sha256_of(&(struct sha256_piece){ text.data, text.len }, 1);
    memcpy(src->digest, hash.bytes, sizeof src->digest);
    buf_release(&text);
    return 0;
}

static int open_path(struct model_source *src, const char *path, struct err *err)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) return err_sys(err, ERR_MODEL_FILE, "model %.200s: open", path);
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        src->dir_fd = fd;
        return open_directory(src, err);
    }
    if (src->format == LOAD_SAFETENSORS) {
        close(fd);
        return err_set(err, ERR_MODEL_FILE, "model %.200s: expected a directory with config.json, found a file", path);
    }
    return open_gguf_file(src, slash ? slash + 1 : path, fd, err);
}

enum load_format load_format_from_name(const char *name)
{
    static const char *const names[] = { [LOAD_GGUF] = "gguf", [LOAD_SAFETENSORS] = "safetensors", [LOAD_DUMMY] = "dummy" };

    for (int i = LOAD_GGUF; i <= LOAD_DUMMY; i++) {
        if (!strcmp(names[i], name)) return (enum load_format)i;
    }
    return LOAD_AUTO;
}

int model_source_open(struct model_source **out, const char *path, enum load_format format, struct err *err)
{
    *out = NULL;
    struct model_source *src = calloc(1, sizeof *src);
    if (!src) return err_set(err, ERR_NO_MEMORY, "model: out of memory");
    src->format = format;
    src->dir_fd = -1;
    int rc = tensor_index_init(&src->index);
    if (rc < 0) err_set(err, rc, "model: out of memory");
    if (rc == 0) rc = open_path(src, path, err);
    if (rc == 0) rc = make_digest(src, err);
    if (rc < 0) {
        model_source_close(src);
        return rc;
    }
    *out = src;
    return 0;
}

void model_source_close(struct model_source *src)
{
    if (!src) return;
    for (size_t i = 0; i < src->num_shards; i++) {
        close(src->shards[i].fd);
        free(src->shards[i].name);
    }
    free(src->shards);
    tensor_index_release(&src->index);
    gguf_close(src->gguf);
    if (src->dir_fd >= 0) close(src->dir_fd);
    free(src);
}

const struct model_config *model_source_config(const struct model_source *src) { return &src->config; }
enum load_format model_source_format(const struct model_source *src) { return src->format; }
const struct gguf_file *model_source_gguf(const struct model_source *src) { return src->gguf; }
int model_source_dir_fd(const struct model_source *src) { return src->dir_fd; }
size_t model_source_num_tensors(const struct model_source *src) { return src->index.count; }
uint64_t model_source_bytes(const struct model_source *src) { return src->bytes; }
void model_source_digest(const struct model_source *src, uint8_t digest[32]) { memcpy(digest, src->digest, 32); }

const struct tensor_info *model_source_find(const struct model_source *src, const char *name)
{
    return tensor_index_find(&src->index, name);
}

int model_source_read(const struct model_source *src, const struct tensor_info *info, uint64_t offset, void *dst,
                      uint64_t len, struct err *err)
{
    size_t i = (size_t)(info - src->index.infos);
    BUG_ON(i >= src->index.count || (size_t)info->file >= src->num_shards);
    const struct shard *shard = &src->shards[info->file];

    if (src->index.foreign[i]) {
        return err_set(err, ERR_MODEL_FILE, "%s: tensor \"%s\": expected F32, F16 or BF16, found one %s%s", shard->name,
                       info->name, info->dtype == DTYPE_COUNT ? "of type " : "", src->index.foreign[i]);
    }
    BUG_ON(offset > info->bytes || len > info->bytes - offset);
    int rc = file_read_at(shard->fd, shard->name, info->offset + offset, dst, len, err);
    if (rc < 0 && err) err_prefix(err, "tensor \"%s\"", info->name);
    return rc;
}

/* ---- the chat template ---- */
/* "chat_template" of tokenizer_config.json: a string, or a list of {"name", "template"} of which "default" counts. */
static const struct cJSON *default_template(const struct cJSON *root)
{
    const struct cJSON *item = json_get(root, "chat_template");
    if (!cJSON_IsArray(item)) return item;
    for (const struct cJSON *each = item->child; each; each = each->next) {
        const struct cJSON *name = json_get(each, "name");
        if (cJSON_IsString(name) && strcmp(name->valuestring, "default") == 0) return json_get(each, "template");
    }
    return NULL;
}

static int copy_template(const char *from, size_t from_len, char **text, size_t *len, struct err *err)
{
    if (from_len > MAX_TEMPLATE_BYTES) {
        return err_set(err, ERR_MODEL_FILE, "chat_template: expected at most %d bytes, found %zu",
                       (int)MAX_TEMPLATE_BYTES, from_len);
    }
    *text = malloc(from_len + 1);
    if (!*text) return err_set(err, ERR_NO_MEMORY, "chat_template: out of memory");
    memcpy(*text, from, from_len);
    (*text)[from_len] = '\0';
    *len = from_len;
    return 0;
}

static int template_of_tokenizer_config(int dir_fd, char **text, size_t *len, struct err *err)
{
    static const char name[] = "tokenizer_config.json";
    struct cJSON *root = NULL;
    struct err why = { 0 };
    char *json = NULL;
    const char *from;
    size_t json_len, from_len;

    int rc = model_read_file(dir_fd, name, MAX_CONFIG_BYTES, &json, &json_len, err);
    if (rc == ERR_NOT_FOUND) return 0;
    if (rc < 0) return rc;
    rc = json_parse(json, json_len, &json_limits_file, &root, &why);
    free(json);
    if (rc < 0) return err_set(err, rc == ERR_NO_MEMORY ? rc : ERR_MODEL_FILE, "%s: %s", name, why.message);
    const struct cJSON *item = default_template(root);
    if (item && json_string(item, &from, &from_len) < 0) {
        rc = err_set(err, ERR_MODEL_FILE, "%s: chat_template: expected a string, found a value of type %s", name,
                     json_kind(item));
    } else if (item) {
        rc = copy_template(from, from_len, text, len, err);
    }
    json_free(root);
    return rc;
}

int model_source_chat_template(const struct model_source *src, char **text, size_t *len, struct err *err)
{
    const char *from;
    size_t from_len;

    *text = NULL;
    *len = 0;
    if (src->gguf) {
        int rc = gguf_get_str(src->gguf, "tokenizer.chat_template", &from, &from_len);
        return rc == 0 ? copy_template(from, from_len, text, len, err) : 0;
    }
    int rc = model_read_file(src->dir_fd, "chat_template.jinja", MAX_TEMPLATE_BYTES, text, len, err);
    return rc == ERR_NOT_FOUND ? template_of_tokenizer_config(src->dir_fd, text, len, err) : rc;
}
