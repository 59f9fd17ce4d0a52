/* dequant_tool.c - dequant_tool DTYPE < blocks > fp32: one row through dequantize_row, for gguf_dequant_parity.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/loader.h>

static char *read_all(FILE *in, size_t *len)
{
    size_t cap = 1 << 20;
    char *data = malloc(cap);
    *len = 0;
    while (data) {
        size_t n = fread(data + *len, 1, cap - *len, in);
        *len += n;
        if (n == 0) return data;
        if (*len < cap) continue;
        char *bigger = realloc(data, cap *= 2);
        if (!bigger) free(data);
        data = bigger;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int dtype = 0;
    size_t len;

    while (argc == 2 && dtype < DTYPE_COUNT && strcmp(argv[1], dtype_name((enum dtype)dtype)) != 0) dtype++;
    if (argc != 2 || dtype == DTYPE_COUNT) {
        fprintf(stderr, "usage: dequant_tool DTYPE < blocks > fp32\n");
        return 1;
    }
    char *blocks = read_all(stdin, &len);
    size_t block_bytes = (size_t)dtype_block_bytes((enum dtype)dtype);
    if (!blocks || len == 0 || len % block_bytes != 0) {
        fprintf(stderr, "dequant_tool: expected whole blocks of %zu bytes, found %zu bytes\n", block_bytes, len);
        free(blocks);
        return 1;
    }
    size_t n = len / block_bytes * (size_t)dtype_block_elems((enum dtype)dtype);
    float *row = malloc(n * sizeof *row);
    if (!row) return 1;
    dequantize_row((enum dtype)dtype, blocks, row, (int64_t)n);
    size_t written = fwrite(row, sizeof *row, n, stdout);
    free(row);
    free(blocks);
    return written == n ? 0 : 1;
}
