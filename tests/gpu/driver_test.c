/* tests/gpu/driver_test.c: opening libcuda, and what its results mean. */
#include "gpu/driver.h"

#include <sys/wait.h>

#include "tests/gpu/fake_env.h"

/* Opens in a child, since a library is loaded once a process; returns the error and fills the sentence. */
static enum nib_err open_in_child(const char *profile, const char *fault, char ret_text[NIB_MAX_MSG_BYTES])
{
    int pipe_fd[2];
    ck_assert_int_eq(pipe(pipe_fd), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        struct nib_cuda cuda;
        struct nib_msg msg = {""};
        fake_env(profile, fault);
        enum nib_err err = nib_cuda_open(&cuda, &msg);
        (void)fake_env_report(); /* unlinks the file */
        ssize_t n = write(pipe_fd[1], msg.text, sizeof msg.text);
        _exit(n == (ssize_t)sizeof msg.text ? (int)err : 255);
    }
    int status = 0;
    ck_assert_int_eq((int)read(pipe_fd[0], ret_text, NIB_MAX_MSG_BYTES), NIB_MAX_MSG_BYTES);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    close(pipe_fd[0]);
    close(pipe_fd[1]);
    ck_assert(WIFEXITED(status));
    return (enum nib_err)WEXITSTATUS(status);
}

START_TEST(opens_on_the_fake)
{
    struct nib_cuda cuda;
    struct nib_msg msg = {""};
    fake_env("h200", "");
    ck_assert_msg(nib_cuda_open(&cuda, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_int_ge(cuda.version, NIB_CUDA_VERSION_MIN);
    ck_assert_uint_eq(fake_env_count("cuInit"), 1);
    nib_cuda_close(&cuda);
    ck_assert_ptr_null(cuda.library);
}
END_TEST

START_TEST(no_library_is_one_sentence)
{
    struct nib_cuda cuda = {.version = 7};
    struct nib_msg msg = {""};
    setenv("NIBBLED_LIBCUDA", "/nowhere/libcuda.so.1", 1);
    ck_assert_int_eq(nib_cuda_open(&cuda, &msg), NIB_E_UNSUPPORTED);
    ck_assert_msg(strstr(msg.text, "no GPU driver") && strstr(msg.text, "/nowhere"), "%s", msg.text);
    ck_assert_int_eq(cuda.version, 7);
}
END_TEST

START_TEST(old_drivers_are_refused)
{
    char text[NIB_MAX_MSG_BYTES];
    ck_assert_int_eq(open_in_child("h200", "cuDriverGetVersion:1:old", text), NIB_E_UNSUPPORTED);
    ck_assert_msg(strstr(text, "11.8") && strstr(text, "12.0"), "%s", text);
}
END_TEST

START_TEST(every_missing_entry_is_named)
{
    static const char *const names[] = {
#define NAME(name, since, parameters) #name,
        NIB_CUDA_CALLS(NAME)
#undef NAME
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char text[NIB_MAX_MSG_BYTES], rule[80];
        snprintf(rule, sizeof rule, "%s:1:missing", names[i]);
        ck_assert_int_eq(open_in_child("h200", rule, text), NIB_E_UNSUPPORTED);
        ck_assert_msg(strstr(text, names[i]) != NULL, "%s: %s", names[i], text);
    }
}
END_TEST

START_TEST(a_failing_init_names_the_error)
{
    static const int codes[] = {100, 999, 802, 803, 804, 2};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        char text[NIB_MAX_MSG_BYTES], rule[40], number[16];
        snprintf(rule, sizeof rule, "cuInit:1:%d", codes[i]);
        snprintf(number, sizeof number, "(%d)", codes[i]);
        ck_assert_int_ne(open_in_child("h200", rule, text), NIB_OK);
        ck_assert_msg(strstr(text, "cuInit") && strstr(text, number), "%s", text);
    }
}
END_TEST

START_TEST(results_have_classes)
{
    static const struct {
        int code;
        enum nib_cuda_class class;
    } known[] = {{0, NIB_CUDA_FINE},    {2, NIB_CUDA_AGAIN},   {600, NIB_CUDA_AGAIN}, {1, NIB_CUDA_USAGE},
                 {500, NIB_CUDA_USAGE}, {700, NIB_CUDA_EXIT},  {702, NIB_CUDA_EXIT},  {719, NIB_CUDA_EXIT},
                 {999, NIB_CUDA_EXIT},  {214, NIB_CUDA_RESET}, {220, NIB_CUDA_RESET}, {800, NIB_CUDA_USAGE},
                 {701, NIB_CUDA_USAGE}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        ck_assert_msg(nib_cuda_classify(known[i].code) == known[i].class, "%d", known[i].code);
}
END_TEST

NIB_SUITE(driver, opens_on_the_fake, no_library_is_one_sentence, old_drivers_are_refused, every_missing_entry_is_named,
          a_failing_init_names_the_error, results_have_classes)
