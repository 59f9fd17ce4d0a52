/* line.c - one line of JSON per result. */
#include <sluice/bench.h>

#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"

#ifndef SLUICE_COMMIT
#define SLUICE_COMMIT "unknown"
#endif

/* The line is a buf under a name of its own, so that the door needs no header of base/. */
static struct buf open_buf(const struct bench_line *line)
{
    return (struct buf){ .data = line->text, .len = line->len, .cap = line->cap, .failed = line->failed };
}

static void keep_buf(struct bench_line *line, const struct buf *buf)
{
    *line = (struct bench_line){ .text = buf->data, .len = buf->len, .cap = buf->cap, .failed = buf->failed };
}

static void put_string(struct buf *buf, const char *value)
{
    buf_putc(buf, '"');
    if (utf8_valid(value, strlen(value))) buf_json_escape(buf, value, strlen(value));
    else buf_puts(buf, "?");
    buf_putc(buf, '"');
}

static void put_key(struct buf *buf, const char *key)
{
    buf_puts(buf, buf->len > 1 ? ", " : "");
    put_string(buf, key);
    buf_puts(buf, ": ");
}

void bench_line_text(struct bench_line *line, const char *key, const char *value)
{
    struct buf buf = open_buf(line);

    put_key(&buf, key);
    if (value) put_string(&buf, value);
    else buf_puts(&buf, "null");
    keep_buf(line, &buf);
}

void bench_line_int(struct bench_line *line, const char *key, int64_t value)
{
    struct buf buf = open_buf(line);

    put_key(&buf, key);
    buf_printf(&buf, "%lld", (long long)value);
    keep_buf(line, &buf);
}

void bench_line_real(struct bench_line *line, const char *key, double value)
{
    struct buf buf = open_buf(line);

    put_key(&buf, key);
    if (isfinite(value)) buf_printf(&buf, "%.7g", value);
    else buf_puts(&buf, "null");
    keep_buf(line, &buf);
}

/* Results are kept and shown: a key is not in them. */
static void put_argument(struct buf *text, const char *argument, const char *before)
{
    static const char key[] = "--api-key";

    if (before && !strcmp(before, key)) buf_puts(text, " ...");
    else if (!strncmp(argument, key, sizeof key - 1) && argument[sizeof key - 1] == '=') buf_printf(text, " %s=...", key);
    else buf_printf(text, " %s", argument);
}

static void put_command(struct bench_line *line, const struct bench_about *about)
{
    struct buf text = BUF_INIT;

    buf_puts(&text, about->program);
    for (int i = 0; i < about->argc; i++) put_argument(&text, about->argv[i], i ? about->argv[i - 1] : NULL);
    bench_line_text(line, "command", text.failed ? NULL : text.data);
    buf_release(&text);
}

static void put_cpu(struct bench_line *line)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char text[256], *name = NULL;
    cpu_set_t set;

    while (file && !name && fgets(text, sizeof text, file))
        if (!strncmp(text, "model name", 10)) name = strchr(text, ':');
    if (file) fclose(file);
    if (name) {
        name += strspn(name, ": \t");
        name[strcspn(name, "\n")] = '\0';
    }
    bench_line_text(line, "cpu", name);
    bench_line_int(line, "cores", sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0);
}

static void put_gpu(struct bench_line *line)
{
    struct bench_gpu gpu;

    bench_gpu_look(&gpu);
    bench_line_text(line, "gpu", gpu.name[0] ? gpu.name : NULL);
    if (!gpu.name[0]) return;
    bench_line_int(line, "num_gpus", gpu.count);
    bench_line_text(line, "driver", gpu.driver[0] ? gpu.driver : NULL);
    bench_line_int(line, "sm_clock_mhz", gpu.sm_clock_mhz);
    bench_line_int(line, "mem_clock_mhz", gpu.mem_clock_mhz);
}

void bench_line_begin(struct bench_line *line, const struct bench_about *about)
{
    struct buf buf = BUF_INIT;

    buf_putc(&buf, '{');
    keep_buf(line, &buf);
    bench_line_text(line, "bench", about->bench);
    bench_line_text(line, "commit", SLUICE_COMMIT);
    put_command(line, about);
    put_cpu(line);
    put_gpu(line);
}

int bench_line_end(struct bench_line *line, FILE *out, struct err *err)
{
    struct buf buf = open_buf(line);
    int rc = 0;

    buf_puts(&buf, "}\n");
    errno = 0;
    if (buf.failed) rc = err_set(err, ERR_NO_MEMORY, "no memory for a line of results");
    else if (fwrite(buf.data, 1, buf.len, out) != buf.len || fflush(out) != 0) rc = err_sys(err, ERR_IO, "writing");
    buf_release(&buf);
    *line = (struct bench_line){ 0 };
    return rc;
}
