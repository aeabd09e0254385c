/* tools/synth_hf.h: what the files of the HF form share. */
#ifndef NIB_TOOLS_SYNTH_HF_H
#define NIB_TOOLS_SYNTH_HF_H

#include <stdio.h>

#include "tools/synth.h"

/* Creates FOLDER/NAME for writing. NIB_E_IO names the file. */
enum nib_err nib_synth_create(const char *folder, const char *name, FILE **ret_file, struct nib_msg *msg) NIB_CHECKED;
/* Flushes and closes it. */
enum nib_err nib_synth_finish(FILE *file, const char *folder, const char *name, struct nib_msg *msg) NIB_CHECKED;

/* config.json, generation_config.json and tokenizer_config.json, with the keys of the published checkpoints. */
enum nib_err nib_synth_hf_configs(const struct nib_synth *synth, struct nib_msg *msg) NIB_CHECKED;

/* tokenizer.json: the blob's vocabulary in GPT-2's byte alphabet, all merges, o200k_harmony's pattern and specials. */
enum nib_err nib_synth_hf_tokenizer(const struct nib_synth *synth, const uint8_t *blob, size_t blob_bytes,
                                    struct nib_msg *msg) NIB_CHECKED;

#endif
