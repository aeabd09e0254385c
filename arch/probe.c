/* arch/probe.c: owns nothing; reads the facts of this machine's CPU.
 * Boot only, any thread. Fails when the system does not tell. */
#include <sched.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "arch/table.h"
#if defined(__x86_64__)
#include "arch/x86/cpu.h"
#endif

#define RESERVED_MIN_BYTES (1ull << 30) /* kept for the rest of the system; or an eighth of the memory */

static enum nib_err read_memory_bytes(uint64_t *ret_bytes, struct nib_msg *msg)
{
    struct sysinfo info; /* not /proc/meminfo: the service's ProcSubset=pid hides it */
    if (sysinfo(&info) != 0 || info.totalram == 0)
        return nib_fail(msg, NIB_E_IO, "the system does not say how much memory it has");
    *ret_bytes = (uint64_t)info.totalram * info.mem_unit;
    return NIB_OK;
}

enum nib_err nib_arch_probe_cpu(struct nib_profile *ret_profile, struct nib_msg *msg)
{
    struct nib_profile p = {.name = "this CPU"};
    enum nib_err err = read_memory_bytes(&p.memory_bytes, msg);
    if (err)
        return err;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return nib_fail(msg, NIB_E_IO, "the system does not say which CPUs this process may use");
    p.sms = (uint32_t)CPU_COUNT(&set);
    p.reserved_bytes = p.memory_bytes / 8 > RESERVED_MIN_BYTES ? p.memory_bytes / 8 : RESERVED_MIN_BYTES;
    if (p.reserved_bytes >= p.memory_bytes)
        p.reserved_bytes = p.memory_bytes / 2;
#if defined(__x86_64__)
    p.cpu_features = nib_x86_features();
#endif
    *ret_profile = p;
    return NIB_OK;
}
