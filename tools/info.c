/* tools/info.c: owns `nibble info`: what an image's header says, as text or JSON. Reads the header alone. Main thread.
 * Fails when the image is refused. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/image.h"
#include "tools/commands.h"
#include "tools/progress.h"

static void tensor_shape(const struct nib_tensor *t, const char *separator, char out[96])
{
    size_t at = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < t->dim_count; i++)
        at += (size_t)snprintf(out + at, 96 - at, "%s%llu", i ? separator : "", (unsigned long long)t->dims[i]);
}

static void print_tensors(const struct nib_image *image)
{
    (void)printf("\n%-26s %-7s %-20s %15s %13s  %s\n", "tensor", "type", "shape", "offset", "bytes", "sha256");
    for (uint32_t i = 0; i < image->tensor_count; i++) {
        const struct nib_tensor *t = &image->tensors[i];
        char dims[96];
        char digest[2 * NIB_SHA256_BYTES + 1];
        tensor_shape(t, "x", dims);
        nib_hex_print(t->sha256, NIB_SHA256_BYTES, digest);
        (void)printf("%-26s %-7s %-20s %15llu %13llu  %.16s\n", t->name, nib_dtype_name(t->dtype), dims,
                     (unsigned long long)t->offset, (unsigned long long)t->bytes, digest);
    }
}

static void print_text(const char *path, const struct nib_image *image)
{
    const struct nib_shape *s = image->shape;
    char size[16];
    char digest[2 * NIB_SHA256_BYTES + 1];
    char key[2 * NIB_ED25519_KEY_BYTES + 1];
    nib_bytes_text(image->file_bytes, size);
    nib_hex_print(image->header_sha256, NIB_SHA256_BYTES, digest);
    nib_hex_print(image->key, NIB_ED25519_KEY_BYTES, key);
    (void)printf("image      %s\nformat     %s\nsize       %s (%llu bytes, %u tensors)\nsource     %s\n", path,
                 NIB_IMAGE_FORMAT, size, (unsigned long long)image->file_bytes, image->tensor_count, image->source);
    (void)printf("shape      %s: %u layers, hidden %u, intermediate %u, experts %u (%u a token), heads %u/%u, "
                 "vocabulary %u, context %u\n",
                 s->name, s->layers, s->hidden, s->intermediate, s->experts, s->experts_used, s->heads, s->kv_heads,
                 s->vocab, s->ctx_max);
    (void)printf("dense      %s\n", nib_dense_name(image->dense));
    (void)printf("identity   %s\nsigned by  %s\n", digest, image->is_signed ? key : "nobody");
    (void)printf("content is not checked here; nibble verify does that\n");
}

/* All texts in it are plain: paths are left out, the source has no quotes and no backslashes. */
static void print_json(const struct nib_image *image, int tensors)
{
    const struct nib_shape *s = image->shape;
    char digest[2 * NIB_SHA256_BYTES + 1];
    char key[2 * NIB_ED25519_KEY_BYTES + 1];
    nib_hex_print(image->header_sha256, NIB_SHA256_BYTES, digest);
    nib_hex_print(image->key, NIB_ED25519_KEY_BYTES, key);
    (void)printf("{\"format\":\"%s\",\"shape\":\"%s\",\"dense\":\"%s\",\"source\":\"%s\",\"file_bytes\":%llu,\"header_"
                 "bytes\":%llu,"
                 "\"header_sha256\":\"%s\",\"signed_by\":",
                 NIB_IMAGE_FORMAT, s->name, nib_dense_name(image->dense), image->source,
                 (unsigned long long)image->file_bytes, (unsigned long long)image->header_bytes, digest);
    (void)printf(image->is_signed ? "\"%s\"" : "null", key);
    (void)printf(",\"layers\":%u,\"hidden\":%u,\"intermediate\":%u,\"experts\":%u,\"experts_used\":%u,\"heads\":%u,"
                 "\"kv_heads\":%u,\"vocab\":%u,\"special_base\":%u,\"window\":%u,\"ctx_max\":%u",
                 s->layers, s->hidden, s->intermediate, s->experts, s->experts_used, s->heads, s->kv_heads, s->vocab,
                 s->special_base, s->window, s->ctx_max);
    for (uint32_t i = 0; tensors && i < image->tensor_count; i++) {
        const struct nib_tensor *t = &image->tensors[i];
        char dims[96];
        tensor_shape(t, ",", dims);
        nib_hex_print(t->sha256, NIB_SHA256_BYTES, digest);
        (void)printf("%s{\"name\":\"%s\",\"dtype\":\"%s\",\"shape\":[%s],\"offset\":%llu,\"bytes\":%llu,\"sha256\":"
                     "\"%s\"}",
                     i == 0 ? ",\"tensors\":[" : ",", t->name, nib_dtype_name(t->dtype), dims,
                     (unsigned long long)t->offset, (unsigned long long)t->bytes, digest);
    }
    (void)printf(tensors ? "]}\n" : "}\n");
}

int nib_cmd_info(int argc, char **argv)
{
    static int json, tensors;
    static const struct option options[] = {
        {"json", no_argument, &json, 1}, {"tensors", no_argument, &tensors, 1}, {0}};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        if (c == '?')
            return NIB_EXIT_USAGE;
    if (argc - optind != 1)
        return NIB_EXIT_USAGE;
    struct nib_msg msg = {""};
    struct nib_image_file file;
    struct nib_image *image = malloc(sizeof *image);
    if (!image || nib_image_open(argv[optind], &file, image, &msg) != NIB_OK) {
        (void)fprintf(stderr, "nibble info: %s\n", image ? msg.text : "no memory");
        free(image);
        return NIB_EXIT_FAILED;
    }
    if (json)
        print_json(image, tensors);
    else
        print_text(argv[optind], image);
    if (!json && tensors)
        print_tensors(image);
    nib_image_close(&file);
    free(image);
    return NIB_EXIT_OK;
}
