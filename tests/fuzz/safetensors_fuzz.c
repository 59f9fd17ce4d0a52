/* safetensors_fuzz.c - any bytes as a header over a data section of `2 * first byte` bytes. */
#include <stdint.h>

#include <sluice/loader.h>

#include "base/bug.h"
#include "loader/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tensor_index index;
    struct err err = { 0 };
    if (size == 0) return 0;
    size_t len = size - 1;
    uint64_t file_size = 8 + (uint64_t)len + 2 * (uint64_t)data[0];
    BUG_ON(tensor_index_init(&index) < 0);
    if (safetensors_parse(&index, 0, "fuzz", (const char *)data + 1, len, file_size, &err) == 0) {
        uint64_t bytes = 0;
        for (size_t i = 0; i < index.count; i++) bytes += index.infos[i].bytes;
        BUG_ON(bytes != file_size - 8 - len);   /* tiled without overlap or hole */
    } else {
        BUG_ON(!err.message[0]);
    }
    tensor_index_release(&index);
    return 0;
}
