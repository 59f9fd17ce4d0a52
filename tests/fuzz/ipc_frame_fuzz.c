/* ipc_frame_fuzz.c - the frame reader and the MSG_SUBMIT decoder over arbitrary bytes, fed in pieces. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/ipc.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads everything that a decoder that said yes has promised. */
static uint64_t touch(const struct engine_request *req)
{
    uint64_t sum = req->id;

    for (uint32_t i = 0; i < req->num_prompt + req->num_output; i++) sum += (uint64_t)req->tokens[i];
    for (uint32_t i = 0; i < req->num_stop_ids; i++) sum += (uint64_t)req->stop_ids[i];
    for (uint32_t i = 0; i < req->num_bias; i++) sum += (uint64_t)req->bias_ids[i] + (req->bias_values[i] > 0);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct ipc_limits limits = { .vocab_size = 1000, .max_model_len = 4096 };
    uint64_t sum = 0;
    struct engine_request req;
    struct ipc_reader reader;
    struct frame_head head;
    const void *payload;

    if (!size) return 0;
    size_t piece = 1 + data[0];
    ipc_reader_init(&reader);
    for (size_t at = 1; at < size; at += piece) {
        int rc;
        if (ipc_reader_feed(&reader, data + at, size - at < piece ? size - at : piece) < 0) break;
        while ((rc = ipc_reader_next(&reader, &head, &payload)) == 1) {
            /* a copy of the exact length, so that a read past the payload is seen */
            char *exact = malloc(head.len + (size_t)!head.len);
            if (!exact) abort();
            memcpy(exact, payload, head.len);
            if (ipc_get_submit(exact, head.len, &limits, &req, NULL) == 0) sum += touch(&req);
            free(exact);
        }
        if (rc < 0) break;
    }
    ipc_reader_release(&reader);
    __asm__ volatile("" : : "r"(sum));      /* keeps the reads */
    return 0;
}
