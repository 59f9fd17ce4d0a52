#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gemm_cache.c"
#include "unit/base/cmocka_all.h"

static struct gemm_table table, back;

static void fill(struct gemm_table *t, int n)
{
    memset(t, 0, sizeof *t);
    snprintf(t->key, sizeof t->key, "NVIDIA H200, 132 SMs, driver 13000, cublasLt 130000, workspace 33554432");
    for (int i = 0; i < n; i++) {
        struct gemm_entry e = { .n = 1 + i, .k = 8 * (i + 1), .rows = gemm_bucket(1 + i), .out_f32 = i % 2, .silu_mul = i % 3 == 0,
                                .how = (enum gemm_how)(i % GEMM_NUM_HOW), .flips = (uint8_t)(i % (FLIP_ALL + 1)), .in_layer = i % 4 == 1, .tuned = true,
                                .workspace_bytes = (uint64_t)i << 20, .us = 1.5f + (float)i };
        for (int j = 0; j < GEMM_ALGO_WORDS; j++) e.algo[j] = 0xFEDCBA9876543210u * (uint64_t)(i + 1) + (uint64_t)j;
        assert_true(gemm_table_put(t, &e));
    }
}

static void path_new(char path[static 64])
{
    int fd;

    snprintf(path, 64, "/tmp/gemm_cache_test.XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
}

static void write_text(const char *path, const char *text, size_t len)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static void what_was_written_is_read(void **state)
{
    char path[64];
    struct err err = { 0 };
    struct gemm_entry guess = { .n = 7, .k = 7, .rows = 24 };

    (void)state;
    path_new(path);
    fill(&table, 40);
    gemm_table_put(&table, &guess);                        /* not timed: not kept */
    assert_int_equal(gemm_cache_write(&table, path, &err), 0);
    fill(&back, 0);
    assert_int_equal(gemm_cache_read(&back, path), 40);
    for (int i = 0; i < 40; i++) {
        const struct gemm_entry *e = &table.entries[i], *b = gemm_table_find(&back, e->n, e->k, e->rows, e->out_f32, e->silu_mul);
        assert_non_null(b);
        assert_true(b->tuned);
        assert_int_equal(b->how, e->how);
        assert_int_equal(b->flips, e->flips);
        assert_int_equal(b->in_layer, e->in_layer);
        assert_int_equal(b->workspace_bytes, e->workspace_bytes);
        assert_memory_equal(b->algo, e->algo, sizeof e->algo);
    }
    assert_null(gemm_table_find(&back, 7, 7, 24, false, false));
    unlink(path);
}

static void another_key_is_no_file(void **state)
{
    char path[64];

    (void)state;
    path_new(path);
    fill(&table, 3);
    assert_int_equal(gemm_cache_write(&table, path, NULL), 0);
    fill(&back, 0);
    snprintf(back.key, sizeof back.key, "another GPU");
    assert_int_equal(gemm_cache_read(&back, path), 0);
    assert_int_equal(gemm_cache_read(&back, "/nonexistent/gemm"), 0);
    assert_true(gemm_cache_write(&table, "/nonexistent/gemm", NULL) < 0);
    unlink(path);
}

/* Two ranks that timed different shapes keep each other's lines. */
static void a_second_writer_adds(void **state)
{
    char path[64];
    struct gemm_entry theirs = { .n = 77, .k = 88, .rows = 24, .tuned = true, .us = 3, .algo = { 1 } }, ours = theirs;

    (void)state;
    path_new(path);
    fill(&table, 3);
    gemm_table_put(&table, &theirs);
    assert_int_equal(gemm_cache_write(&table, path, NULL), 0);
    fill(&table, 2);
    ours.n = 78;
    gemm_table_put(&table, &ours);
    assert_int_equal(gemm_cache_write(&table, path, NULL), 0);
    fill(&back, 0);
    assert_int_equal(gemm_cache_read(&back, path), 5);
    assert_non_null(gemm_table_find(&back, 77, 88, 24, false, false));
    assert_non_null(gemm_table_find(&back, 78, 88, 24, false, false));
    unlink(path);
}

/* Cuts the file at every byte and flips bytes all over: what is left reads without harm, and whole lines survive. */
static void damage_costs_only_its_lines(void **state)
{
    char path[64], text[8192], broken[8192];
    size_t len;
    FILE *f;

    (void)state;
    path_new(path);
    fill(&table, 6);
    assert_int_equal(gemm_cache_write(&table, path, NULL), 0);
    f = fopen(path, "r");
    assert_non_null(f);
    len = fread(text, 1, sizeof text, f);
    fclose(f);
    log_set_level(LOG_ERROR);
    for (size_t cut = 0; cut < len; cut += 7) {
        int lines = 0;
        for (size_t i = 0; i < cut; i++) lines += text[i] == '\n';
        write_text(path, text, cut);
        fill(&back, 0);
        assert_int_equal(gemm_cache_read(&back, path), lines > 0 ? lines - 1 : 0);
    }
    for (size_t at = 0; at < len; at += 3) {
        memcpy(broken, text, len);
        broken[at] = (char)(at % 2 ? '\0' : 0xFF);
        write_text(path, broken, len);
        fill(&back, 0);
        assert_in_range(gemm_cache_read(&back, path), 0, 6);
    }
    memset(broken, 'a', sizeof broken);                    /* one endless line after a good head */
    memcpy(broken, text, (size_t)(strchr(text, '\n') - text) + 1);
    write_text(path, broken, sizeof broken);
    fill(&back, 0);
    assert_int_equal(gemm_cache_read(&back, path), 0);
    unlink(path);
}

static void a_full_table_refuses(void **state)
{
    struct gemm_entry e = { .n = 100000, .k = 8, .rows = 24 };

    (void)state;
    fill(&table, GEMM_TABLE_MAX);
    assert_false(gemm_table_put(&table, &e));
    e = table.entries[5];
    e.us = 99;
    assert_true(gemm_table_put(&table, &e));               /* replaced */
    assert_true(table.entries[5].us > 98);
    assert_int_equal(table.num_entries, GEMM_TABLE_MAX);
}

static void buckets_cover_every_count(void **state)
{
    (void)state;
    for (int32_t rows = 1; rows < 10000; rows++) {
        int32_t bucket = gemm_bucket(rows);
        assert_true(bucket >= rows || bucket == 8192);
        assert_int_equal(gemm_bucket(bucket), bucket);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),    cmocka_unit_test(another_key_is_no_file),
        cmocka_unit_test(a_second_writer_adds),
        cmocka_unit_test(damage_costs_only_its_lines), cmocka_unit_test(a_full_table_refuses),
        cmocka_unit_test(buckets_cover_every_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
