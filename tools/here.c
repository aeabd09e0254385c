/* tools/here.c: owns the GPU while its facts are read. One thread. Fails with the driver's sentence. */
#include "tools/here.h"

#include <stdio.h>
#include <string.h>

#include "arch/table.h"
#include "gpu/gpu.h"

bool nib_here_device(const char *command, const char *device)
{
    const bool known = !strcmp(device, "auto") || !strcmp(device, "cpu") || !strcmp(device, "gpu");
    if (!known)
        (void)fprintf(stderr, "%s: '%s' is no device; allowed are auto, cpu and gpu\n", command, device);
    return known;
}

enum nib_err nib_here_probe(const char *device, struct nib_profile *ret_profile, struct nib_profile *ret_host,
                            struct nib_msg *ret_note, struct nib_msg *msg)
{
    static struct nib_gpu gpu;
    struct nib_profile host, found;
    enum nib_err err = nib_arch_probe_cpu(&host, msg);
    if (err)
        return err;
    found = host;
    ret_note->text[0] = '\0';
    if (strcmp(device, "cpu") != 0) {
        err = nib_gpu_open(&gpu, msg);
        const bool none = err == NIB_E_UNSUPPORTED && !strcmp(device, "auto");
        if (none)
            *ret_note = *msg;
        else if (err)
            return err;
        if (!err) {
            err = nib_gpu_probe(&gpu, &host, &found, msg);
            nib_gpu_close(&gpu);
        }
        if (err && !none)
            return err;
    }
    *ret_profile = found;
    *ret_host = host;
    return NIB_OK;
}
