/* core/limits.h: every cap in the product, one line each, with its unit and reason.
 * A number that bounds memory, time or input belongs here and nowhere else. */
#ifndef NIB_CORE_LIMITS_H
#define NIB_CORE_LIMITS_H

/* text for people */
#define NIB_MAX_MSG_BYTES 512 /* one error sentence with its NUL */

/* model shapes (a shape in core/model.c must stay inside these) */
#define NIB_MAX_LAYERS       64     /* 120b has 36 */
#define NIB_MAX_EXPERTS      128    /* 120b */
#define NIB_MAX_EXPERTS_USED 4      /* all gpt-oss models */
#define NIB_MAX_HIDDEN       8192   /* elements; 2,880 today */
#define NIB_MAX_VOCAB        262144 /* ids; 201,088 today */
#define NIB_MAX_CTX_TOKENS   131072 /* the model's trained context */
#define NIB_MAX_SHAPE_NAME   32     /* bytes with NUL */

/* model image */
#define NIB_MAX_TENSORS          1100         /* NIB_MAX_LAYERS x 17 + 6 = 1,094 */
#define NIB_MAX_TENSOR_NAME      96           /* bytes with NUL */
#define NIB_MAX_TENSOR_DIMS      4            /* experts' blocks: [E, 2I, H/32, 16] */
#define NIB_MAX_HEADER_BYTES     (1u << 20)   /* safetensors header of an image */
#define NIB_MAX_SRC_HEADER_BYTES (100u << 20) /* header of a source checkpoint shard (the format's own cap) */
#define NIB_MAX_SOURCE_BYTES     256          /* what an image was packed from, with its NUL */
#define NIB_MAX_TOKENIZER_BYTES  (32u << 20)  /* tokenizer blob of an image; o200k needs about 6 MB */
#define NIB_MAX_GENERATION_BYTES (16u << 10)  /* generation defaults of an image, JSON text */
#define NIB_MAX_SHARDS           256          /* files of a sharded checkpoint */
#define NIB_MAX_SRC_TENSORS      2048         /* of a source checkpoint; 120b has 36 x 19 + 3 */
#define NIB_MAX_SRC_KEYS         512          /* metadata keys of a GGUF file; gpt-oss has about 40 */
#define NIB_MAX_SRC_CONFIG_BYTES                                                                                       \
    (1u << 20) /* config.json, generation_config.json, the shard index; 120b's index has 70 KB */
#define NIB_MAX_SRC_JSON_BYTES (64u << 20) /* a JSON file beside a checkpoint; tokenizer.json has 28 MB */
#define NIB_MAX_PATH_BYTES     4096        /* a path with NUL */
#define NIB_IMAGE_ALIGN        4096u       /* bytes; direct reads and mmap need a page */
#define NIB_MAX_IO_CHUNK_BYTES (8u << 20)  /* one read or write of a large file */

/* tokenizer */
#define NIB_MAX_TOKEN_BYTES  128        /* longest token of o200k_base */
#define NIB_MAX_TOKEN_PROBES 256        /* looks into the token table for one token; 40 is usual at most */
#define NIB_MAX_TEXT_BYTES   (4u << 20) /* text of one encode call: a request body's cap */
#define NIB_MAX_UTF8_HELD    3          /* bytes of an incomplete sequence held back in streaming decode */

/* harmony */
#define NIB_MAX_MESSAGES        4096 /* of one conversation */
#define NIB_MAX_TOOLS           128  /* function tools of one request (OpenAI's own cap) */
#define NIB_MAX_NAME_BYTES      64   /* tool, role and channel names (OpenAI's own cap) */
#define NIB_MAX_RECIPIENT_BYTES 128  /* "functions." and a name, or junk cut here */
#define NIB_MAX_JSON_DEPTH      32   /* nesting of a request or a tool schema */
#define NIB_MAX_SCHEMA_REQUIRED 256  /* names in one `required`: each property is looked up among them */

/* sampling */
#define NIB_MAX_TOP_LOGPROBS 20  /* OpenAI's own cap */
#define NIB_MAX_LOGIT_BIAS   300 /* entries of logit_bias (OpenAI's own cap) */
#define NIB_MAX_STOP_TOKENS  8   /* token ids that end a sequence */
#define NIB_MAX_STOP_STRINGS 4   /* OpenAI's own cap */
#define NIB_MAX_STOP_BYTES   256 /* one stop string */

/* engine and scheduler */
#define NIB_MAX_SLOTS              256   /* sequences resident at once */
#define NIB_MAX_STEP_ROWS          2048  /* rows (tokens) of one step: decode rows and prefill chunks */
#define NIB_MAX_QUEUE              256   /* requests waiting for a slot */
#define NIB_MAX_STEPS_AHEAD        2     /* steps launched whose results were not yet read */
#define NIB_MAX_DRAFT_TOKENS       15    /* guessed tokens of one sequence in a step: with its last one, 16 rows */
#define NIB_MAX_GAP_PERCENT        10000 /* of an idle step, that a step with prompt rows beside answers may take */
#define NIB_KV_PAGE_TOKENS         64  /* tokens of one KV page: small enough to waste little, large enough to stream */
#define NIB_MAX_WINDOW_PAGES       4   /* pages of one window; the models' 128 tokens need 2 */
#define NIB_PREFIX_PAGES           64  /* of the pool, beyond what slots can hold: 32 places where prompts may part */
#define NIB_PREFIX_SLOT_PAGES      4   /* and a slot: its prompt's end and one place more */
#define NIB_MAX_PREFIX_PROBES      32  /* kept pages looked at for one page of a prompt, whatever the hashes */
#define NIB_MAX_KV_LOADS           32  /* copies of a step from kept pages into rings: 16 prompts that begin warm */
#define NIB_MAX_KV_SAVES           64  /* copies of a step from rings into kept pages: twice the pages of its rows */
#define NIB_MAX_OVERTAKEN          8   /* requests that may pass one which waits for pages */
#define NIB_PROMPT_CHUNK_TOKENS    256 /* prompts wait in chunks of this many tokens: half is lost on average */
#define NIB_WAITING_PROMPT_TOKENS  4096u       /* the prompt of each waiting request has room up to this length */
#define NIB_MAX_PROMPT_POOL_TOKENS (64u << 20) /* of all waiting prompts: every slot and queue place with 131,072 */
#define NIB_MAX_KV_PAGES           (4u << 20)  /* of the pool: 256 slots with 131,072 tokens use 524,288 */
#define NIB_MAX_RING_CELLS         (1u << 16)  /* elements of one ring between two threads */
#define NIB_MAX_RING_ELEM_BYTES    4096        /* larger things are passed by index */
#define NIB_MAX_THREADS            256         /* CPU worker threads */
#define NIB_MAX_READERS            16          /* threads that read an image for a GPU; each hashes at 1 GB/s or more */
#define NIB_MAX_SELFTEST_MS        5000        /* one kernel of the self-test; it takes well under one */
#define NIB_MAX_STEP_MS            20000       /* a GPU step that takes longer is lost; the slowest take about 3 s */

/* plan */
#define NIB_MAX_REGIONS 512 /* lines of a memory plan */

/* appliance */
#define NIB_MAX_CONFIG_BYTES (64u << 10) /* nibbled.yaml */
#define NIB_MAX_BODY_BYTES   (4u << 20)  /* request body */
#define NIB_MAX_DROP_BYTES                                                                                             \
    (16u << 20) /* body of a refused request that is read and dropped, so that its client gets the answer */
#define NIB_MAX_CONNS     512 /* open client connections */
#define NIB_MAX_UID_RULES 64  /* SO_PEERCRED allow-list entries */

#endif
