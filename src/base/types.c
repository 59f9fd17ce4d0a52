#include <sluice/types.h>

static const struct { const char *name; int elems, bytes; } dtype_rows[DTYPE_COUNT] = {
#define DTYPE_X(enum_name, text, block_elems, block_bytes) [enum_name] = { text, block_elems, block_bytes },
    DTYPE_MAP(DTYPE_X)
#undef DTYPE_X
};

const char *dtype_name(enum dtype dtype) { return (unsigned)dtype < DTYPE_COUNT ? dtype_rows[dtype].name : "?"; }
int dtype_block_elems(enum dtype dtype) { return dtype_rows[dtype].elems; }
int dtype_block_bytes(enum dtype dtype) { return dtype_rows[dtype].bytes; }

int64_t dtype_row_bytes(enum dtype dtype, int64_t n)
{
    int64_t bytes;

    if ((unsigned)dtype >= DTYPE_COUNT || n < 0 || n % dtype_rows[dtype].elems) return -1;
    if (__builtin_mul_overflow(n / dtype_rows[dtype].elems, (int64_t)dtype_rows[dtype].bytes, &bytes)) return -1;
    return bytes;
}
