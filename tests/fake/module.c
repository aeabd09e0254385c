/* tests/fake/module.c: owns what is read of kernel images: whether they fit the device, and the names of their kernels.
 * Boot only. A cubin is an ELF file of its own machine type with the architecture in bits 8 to 15 of e_flags (as nvcc 13
 * writes it); PTX is text with a .target line. Other text stands for an image of a build without nvcc. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fake/fake.h"

#define EM_CUDA_MACHINE 190

/* A cubin runs on its own major version with the same or a later minor one; an "a" image on exactly its own. */
static int check_cubin(const Elf64_Ehdr *e)
{
    uint32_t sm = e->e_flags >> 8 & 0xff, cc = fake.profile.compute_capability;
    if (e->e_machine != EM_CUDA_MACHINE || sm == 0)
        return NIB_CU_INVALID_IMAGE;
    return sm / 10 == cc / 10 && sm <= cc ? 0 : NIB_CU_NO_BINARY_FOR_GPU;
}

static int check_ptx(const char *target)
{
    char *end;
    unsigned long sm = strtoul(target, &end, 10);
    uint32_t cc = fake.profile.compute_capability;
    if (sm == 0)
        return NIB_CU_INVALID_PTX;
    bool exact = *end == 'a';
    return (exact ? sm == cc : sm <= cc) ? 0 : NIB_CU_NO_BINARY_FOR_GPU;
}

static size_t elf_bytes(const Elf64_Ehdr *e)
{
    const uint8_t *base = (const uint8_t *)e;
    size_t end = e->e_shoff + (size_t)e->e_shnum * e->e_shentsize;
    for (unsigned i = 0; i < e->e_shnum; i++) {
        Elf64_Shdr section;
        memcpy(&section, base + e->e_shoff + (size_t)i * e->e_shentsize, sizeof section);
        if (section.sh_type != SHT_NOBITS && section.sh_offset + section.sh_size > end)
            end = section.sh_offset + section.sh_size;
    }
    return end;
}

int fake_module_open(const void *image, struct CUmod_st **ret_module)
{
    struct CUmod_st m = {.image = image};
    int result = 0;
    if (memcmp(image, ELFMAG, SELFMAG) == 0) {
        Elf64_Ehdr e;
        memcpy(&e, image, sizeof e);
        result = check_cubin(&e);
        m.bytes = elf_bytes(image);
    } else {
        const char *target = strstr(m.image, ".target sm_");
        m.ptx = true;
        m.bytes = strlen(m.image);
        result = target ? check_ptx(target + strlen(".target sm_")) : 0;
    }
    if (result)
        return result;
    *ret_module = fake_new(sizeof m);
    **ret_module = m;
    return 0;
}

/* The name as a whole word. */
bool fake_module_has(const struct CUmod_st *m, const char *symbol)
{
    size_t n = strlen(symbol);
    for (size_t i = 0; i + n < m->bytes; i++) {
        if (m->image[i] != symbol[0] || memcmp(m->image + i, symbol, n) != 0)
            continue;
        char after = m->image[i + n], before = i ? m->image[i - 1] : '\0';
        bool ends = after == '\0' || after == '(' || after == '\n' || after == ' ';
        bool begins = before == '\0' || before == '.' || before == ' ' || before == '\n' || before == '\t';
        if (ends && begins)
            return true;
    }
    return false;
}
