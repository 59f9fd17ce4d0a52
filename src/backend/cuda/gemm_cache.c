/* gemm_cache.c - the table of algorithms and its file; gemm_cache.h has the format. */
#include "gemm_cache.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

static const char magic[] = "sluice-gemm 3 ";
enum { LINE_MAX_BYTES = 512, FILE_MAX_LINES = 4 * GEMM_TABLE_MAX };

bool gemm_same_way(const struct gemm_entry *a, const struct gemm_entry *b)
{
    return a->how == b->how && (a->how == GEMM_APART || memcmp(a->algo, b->algo, sizeof a->algo) == 0);
}

int32_t gemm_bucket(int32_t rows)
{
    static const int32_t ends[] = { 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192 };
    int n = sizeof ends / sizeof ends[0];

    for (int i = 0; i < n; i++)
        if (rows <= ends[i]) return ends[i];
    return ends[n - 1];
}

struct gemm_entry *gemm_table_find(struct gemm_table *t, int32_t n, int32_t k, int32_t rows, bool out_f32, bool silu_mul)
{
    for (int i = 0; i < t->num_entries; i++) {
        struct gemm_entry *e = &t->entries[i];
        if (e->n == n && e->k == k && e->rows == rows && e->out_f32 == out_f32 && e->silu_mul == silu_mul) return e;
    }
    return NULL;
}

bool gemm_table_put(struct gemm_table *t, const struct gemm_entry *entry)
{
    struct gemm_entry *at = gemm_table_find(t, entry->n, entry->k, entry->rows, entry->out_f32, entry->silu_mul);

    if (!at) {
        if (t->num_entries == GEMM_TABLE_MAX) return false;
        at = &t->entries[t->num_entries++];
    }
    *at = *entry;
    return true;
}

/* One entry line without its newline. */
static bool parse_entry(const char *line, struct gemm_entry *e)
{
    char algo[16 * GEMM_ALGO_WORDS + 2];
    int out_f32, silu_mul, how, flips, in_layer, used = 0;

    memset(e, 0, sizeof *e);
    if (sscanf(line, "%9" SCNd32 " %9" SCNd32 " %9" SCNd32 " %1d %1d %1d %1d %1d %10" SCNu64 " %16f %129s%n",
               &e->n, &e->k, &e->rows, &out_f32, &silu_mul, &how, &flips, &in_layer, &e->workspace_bytes, &e->us, algo, &used) != 11 || line[used] != '\0') return false;
    if (e->n <= 0 || e->k <= 0 || e->rows <= 0 || gemm_bucket(e->rows) != e->rows || (out_f32 != 0 && out_f32 != 1)) return false;
    if ((silu_mul != 0 && silu_mul != 1) || how < 0 || how >= GEMM_NUM_HOW || flips < 0 || flips > FLIP_ALL || in_layer < 0 || in_layer > 1) return false;
    if (!(e->us > 0) || strlen(algo) != 16 * GEMM_ALGO_WORDS || strspn(algo, "0123456789abcdef") != strlen(algo)) return false;
    for (int i = 0; i < GEMM_ALGO_WORDS; i++) {
        char word[17];
        memcpy(word, algo + 16 * i, 16);
        word[16] = '\0';
        e->algo[i] = strtoull(word, NULL, 16);
    }
    e->out_f32 = out_f32 == 1;
    e->silu_mul = silu_mul == 1;
    e->how = (enum gemm_how)how;
    e->flips = (uint8_t)flips;
    e->in_layer = in_layer == 1;
    e->tuned = true;
    return true;
}

int gemm_cache_read(struct gemm_table *t, const char *path)
{
    char line[LINE_MAX_BYTES];
    int found = 0, bad = 0;
    FILE *f = fopen(path, "re");

    if (!f) return 0;
    if (!fgets(line, sizeof line, f)) goto out;
    line[strcspn(line, "\n")] = '\0';
    if (strncmp(line, magic, strlen(magic)) != 0 || strcmp(line + strlen(magic), t->key) != 0) goto out;
    for (int lines = 0; lines < FILE_MAX_LINES && fgets(line, sizeof line, f); lines++) {
        size_t len = strcspn(line, "\n");
        struct gemm_entry entry;
        bool whole = line[len] == '\n';                    /* else too long, or cut off at the end of the file */

        line[len] = '\0';
        if (whole && parse_entry(line, &entry) && gemm_table_put(t, &entry)) found++;
        else bad++;
    }
out:
    fclose(f);
    if (bad > 0) log_warn("gemm_cache_line", "%s: %d lines are damaged and left out", path, bad);
    return found;
}

int gemm_cache_write(const struct gemm_table *t, const char *path, struct err *err)
{
    char next[1024];
    struct gemm_table *all = malloc(sizeof *all);          /* the file's entries, then ours over them: another rank may have written */
    int rc = 0, fd = -1;
    FILE *f = NULL;

    if (!all) return err_set(err, ERR_NO_MEMORY, "gemm cache: out of memory");
    memcpy(all->key, t->key, sizeof all->key);
    all->num_entries = 0;
    gemm_cache_read(all, path);
    for (int i = 0; i < t->num_entries; i++)
        if (t->entries[i].tuned) gemm_table_put(all, &t->entries[i]);

    if ((size_t)snprintf(next, sizeof next, "%s.XXXXXX", path) >= sizeof next) {
        rc = err_set(err, ERR_IO, "gemm cache: path of more than %zu bytes", sizeof next - 8);
        goto out;
    }
    fd = mkostemp(next, O_CLOEXEC);
    if (fd < 0) { rc = err_sys(err, ERR_IO, "gemm cache: create %s", next); goto out; }
    f = fdopen(fd, "w");
    if (!f) { rc = err_sys(err, ERR_IO, "gemm cache: open %s", next); goto out; }
    fd = -1;                                               /* moved into f */
    fprintf(f, "%s%s\n", magic, all->key);
    for (int i = 0; i < all->num_entries; i++) {
        const struct gemm_entry *e = &all->entries[i];
        fprintf(f, "%" PRId32 " %" PRId32 " %" PRId32 " %d %d %d %d %d %" PRIu64 " %.3f ", e->n, e->k, e->rows, e->out_f32, e->silu_mul, (int)e->how,
                e->flips, e->in_layer, e->workspace_bytes, (double)e->us);
        for (int j = 0; j < GEMM_ALGO_WORDS; j++) fprintf(f, "%016" PRIx64, e->algo[j]);
        fputc('\n', f);
    }
    if (fflush(f) != 0 || fsync(fileno(f)) != 0) rc = err_sys(err, ERR_IO, "gemm cache: write %s", next);
    if (fchmod(fileno(f), 0644) != 0 && rc == 0) rc = err_sys(err, ERR_IO, "gemm cache: mode of %s", next);
    if (fclose(f) != 0 && rc == 0) rc = err_sys(err, ERR_IO, "gemm cache: close %s", next);
    if (rc == 0 && rename(next, path) != 0) rc = err_sys(err, ERR_IO, "gemm cache: rename to %s", path);
    if (rc < 0) unlink(next);
out:
    if (fd >= 0) { close(fd); unlink(next); }
    free(all);
    return rc;
}
