#include "buckets.h"

enum { SMALL = 4, BY_8 = 31, BY_16 = 16 };           /* buckets of each stretch */

int32_t bucket_size(int index)
{
    if (index < SMALL) return 1 << index;
    if (index < SMALL + BY_8) return 8 + 8 * (index - SMALL + 1);
    if (index < SMALL + BY_8 + BY_16) return 256 + 16 * (index - SMALL - BY_8 + 1);
    return 512 + 32 * (index - SMALL - BY_8 - BY_16 + 1);
}

int bucket_of(int32_t n)
{
    if (n < 1 || n > MAX_BUCKET) return -1;
    if (n <= 8) {
        int index = 0;
        while (1 << index < n) index++;
        return index;
    }
    if (n <= 256) return SMALL + (n - 8 + 7) / 8 - 1;
    if (n <= 512) return SMALL + BY_8 + (n - 256 + 15) / 16 - 1;
    return SMALL + BY_8 + BY_16 + (n - 512 + 31) / 32 - 1;
}
