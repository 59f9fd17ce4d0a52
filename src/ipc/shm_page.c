#include <sluice/ipc.h>

#include <sys/mman.h>
#include <sys/stat.h>

struct engine_page *engine_page_map(int fd)
{
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof(struct engine_page))
        return NULL;
    void *page = mmap(NULL, sizeof(struct engine_page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return page == MAP_FAILED ? NULL : page;
}

void engine_page_unmap(struct engine_page *page)
{
    if (page) munmap(page, sizeof *page);
}
