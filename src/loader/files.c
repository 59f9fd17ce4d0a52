#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <sluice/loader.h>

/* O_NONBLOCK: a FIFO put in the directory must not hang the start. */
enum { OPEN_FLAGS = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK };

static int openat2_beneath(int root_fd, const char *path)
{
    struct open_how how = { .flags = OPEN_FLAGS, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS };
    return (int)syscall(SYS_openat2, root_fd, path, &how, sizeof how);
}

/* The last two components of dir_fd's path when it is models--X/snapshots/Y: rel = "snapshots/Y". */
static bool snapshot_of_cache(int dir_fd, char *rel, size_t cap)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir_fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return false;
    path[n] = '\0';
    char *revision = strrchr(path, '/');
    if (!revision || revision == path) return false;
    *revision++ = '\0';
    char *snapshots = strrchr(path, '/');
    if (!snapshots || strcmp(snapshots, "/snapshots") != 0) return false;
    *snapshots = '\0';
    const char *model = strrchr(path, '/');
    if (!model || strncmp(model, "/models--", 9) != 0) return false;
    return (size_t)snprintf(rel, cap, "snapshots/%s", revision) < cap;
}

static int openat2_in_cache(int dir_fd, const char *name)
{
    char rel[PATH_MAX], path[PATH_MAX + NAME_MAX + 2];
    if (!snapshot_of_cache(dir_fd, rel, sizeof rel)) {
        errno = EXDEV;
        return -1;
    }
    int root_fd = openat(dir_fd, "../..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0) return -1;
    snprintf(path, sizeof path, "%s/%s", rel, name);
    int fd = openat2_beneath(root_fd, path);
    int saved = errno;
    close(root_fd);
    errno = saved;
    return fd;
}

/* Where openat2 is missing (Linux < 5.6) or filtered: at most one link, to a plain name beside it or to a blob of the
 * cache. */
static int open_without_openat2(int dir_fd, const char *name)
{
    char target[PATH_MAX], rel[PATH_MAX];
    int fd = openat(dir_fd, name, OPEN_FLAGS | O_NOFOLLOW);
    if (fd >= 0 || errno != ELOOP) return fd;
    ssize_t n = readlinkat(dir_fd, name, target, sizeof target - 1);
    if (n < 0) return -1;
    target[n] = '\0';
    const char *blob = strncmp(target, "../../blobs/", 12) == 0 ? target + 12 : NULL;
    bool inside = !strchr(target, '/') || (blob && !strchr(blob, '/') && snapshot_of_cache(dir_fd, rel, sizeof rel));
    if (!inside || strcmp(blob ? blob : target, "..") == 0) {
        errno = EXDEV;
        return -1;
    }
    return openat(dir_fd, target, OPEN_FLAGS | O_NOFOLLOW);
}

int regular_file_size(int fd, const char *label, uint64_t *size, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0) return err_sys(err, ERR_MODEL_FILE, "%s: stat", label);
    if (!S_ISREG(st.st_mode)) return err_set(err, ERR_MODEL_FILE, "%s: expected a regular file", label);
    *size = (uint64_t)st.st_size;
    return 0;
}

int open_beneath(int dir_fd, const char *name, uint64_t *size, struct err *err)
{
    if (!name[0] || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return err_set(err, ERR_MODEL_FILE, "%.100s: expected a file name without a path", name);
    }
    int fd = openat2_beneath(dir_fd, name);
    if (fd < 0 && errno == EXDEV) fd = openat2_in_cache(dir_fd, name);
    else if (fd < 0 && (errno == ENOSYS || errno == EPERM || errno == EINVAL)) fd = open_without_openat2(dir_fd, name);
    if (fd < 0 && errno == ENOENT) return ERR_NOT_FOUND;
    if (fd < 0 && errno == EXDEV) {
        return err_set(err, ERR_MODEL_FILE, "%.100s: symbolic link leaves the model's directory", name);
    }
    if (fd < 0) return err_sys(err, ERR_MODEL_FILE, "%.100s: open", name);
    int rc = regular_file_size(fd, name, size, err);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

int file_read_at(int fd, const char *label, uint64_t offset, void *dst, uint64_t len, struct err *err)
{
    char *to = dst;
    while (len > 0) {
        if (offset > INT64_MAX) return err_set(err, ERR_MODEL_FILE, "%s: offset %" PRIu64 " is absurd", label, offset);
        size_t want = len < (1u << 30) ? (size_t)len : 1u << 30;
        ssize_t n = pread(fd, to, want, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_sys(err, ERR_IO, "%s: read at byte %" PRIu64, label, offset);
        if (n == 0) {
            return err_set(err, ERR_MODEL_FILE,
                           "%s: expected %" PRIu64 " more bytes at byte %" PRIu64 ", found the end", label, len,
                           offset);
        }
        to += n;
        offset += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

int model_read_file(int dir_fd, const char *name, size_t max_bytes, char **data, size_t *len, struct err *err)
{
    uint64_t size = 0;
    *data = NULL;
    *len = 0;
    int fd = open_beneath(dir_fd, name, &size, err);
    if (fd < 0) return fd;
    int rc = 0;
    char *text = NULL;
    if (size > max_bytes) {
        rc = err_set(err, ERR_MODEL_FILE, "%s: expected at most %zu bytes, found %" PRIu64, name, max_bytes, size);
        goto out;
    }
    text = malloc((size_t)size + 1);
    if (!text) {
        rc = err_set(err, ERR_NO_MEMORY, "%s: out of memory for %" PRIu64 " bytes", name, size);
        goto out;
    }
    if ((rc = file_read_at(fd, name, 0, text, size, err)) < 0) goto out;
    text[size] = '\0';
    *data = text;
    *len = (size_t)size;
    text = NULL;
out:
    free(text);
    close(fd);
    return rc;
}
