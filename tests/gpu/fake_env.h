/* tests/gpu/fake_env.h: points a test process at tests/fake's libcuda, and reads its report. */
#ifndef NIB_TESTS_GPU_FAKE_ENV_H
#define NIB_TESTS_GPU_FAKE_ENV_H

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fake/fake.h"
#include "tests/harness.h"

/* The library lies beside the test programs; profiles in the tree that the tests run from. */
static inline void fake_env(const char *profile, const char *fault)
{
    char path[4096], file[256];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
    ck_assert_int_gt((int)n, 0);
    path[n] = '\0';
    char *name = strrchr(path, '/');
    strcpy(name, "/../fake/libcuda.so");
    ck_assert_int_eq(setenv("NIBBLED_LIBCUDA", path, 1), 0);
    snprintf(file, sizeof file, "etc/profiles/%s.json", profile);
    ck_assert_int_eq(setenv("NIBBLED_FAKE_PROFILE", file, 1), 0);
    ck_assert_int_eq(setenv("NIBBLED_FAKE_FAULT", fault, 1), 0);
    strcpy(name, "/fake-report-XXXXXX");
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, sizeof(struct fake_report)), 0);
    close(fd);
    ck_assert_int_eq(setenv("NIBBLED_FAKE_REPORT", path, 1), 0);
}

/* What the library of this process has counted so far. */
static inline const struct fake_report *fake_env_report(void)
{
    static const struct fake_report *report;
    if (!report) {
        int fd = open(getenv("NIBBLED_FAKE_REPORT"), O_RDONLY | O_CLOEXEC);
        ck_assert_int_ge(fd, 0);
        report = mmap(NULL, sizeof *report, PROT_READ, MAP_SHARED, fd, 0);
        ck_assert_ptr_ne(report, MAP_FAILED);
        close(fd);
        unlink(getenv("NIBBLED_FAKE_REPORT"));
    }
    return report;
}

static inline uint64_t fake_env_count(const char *site)
{
    const struct fake_report *r = fake_env_report();
    for (uint32_t i = 0; i < r->sites; i++)
        if (strcmp(r->site[i].name, site) == 0)
            return r->site[i].count;
    ck_abort_msg("the report has no %s", site);
}

#endif
