#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include <sluice/ipc.h>

static void what_is_written_is_seen_by_the_other_side(void **state)
{
    int fd = memfd_create("page", MFD_CLOEXEC);

    (void)state;
    assert_int_equal(ftruncate(fd, sizeof(struct engine_page)), 0);
    struct engine_page *page = engine_page_map(fd);
    const struct engine_page *seen = mmap(NULL, sizeof *seen, PROT_READ, MAP_SHARED, fd, 0);
    assert_non_null(page);
    assert_true(seen != MAP_FAILED);
    page->steps = 42;
    assert_int_equal(seen->steps, 42);
    engine_page_unmap(page);
    munmap((void *)(uintptr_t)seen, sizeof *seen);
    close(fd);
}

static void other_descriptors_are_no_page(void **state)
{
    int pair[2], fd = memfd_create("page", MFD_CLOEXEC);

    (void)state;
    assert_int_equal(ftruncate(fd, sizeof(struct engine_page) - 1), 0);
    assert_null(engine_page_map(fd));          /* too small: a touch would be SIGBUS */
    close(fd);
    assert_null(engine_page_map(fd));
    assert_null(engine_page_map(-1));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_null(engine_page_map(pair[0]));
    close(pair[0]);
    close(pair[1]);
    engine_page_unmap(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_seen_by_the_other_side),
        cmocka_unit_test(other_descriptors_are_no_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
