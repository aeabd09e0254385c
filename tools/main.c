/* tools/main.c: owns the table of subcommands and the help. Main thread. Exit codes: see tools/commands.h. */
#include <stdio.h>
#include <string.h>

#include "core/model.h"
#include "tools/commands.h"

struct command {
    const char *name; /* one word, or two */
    const char *args; /* after the name, for the usage line */
    const char *help; /* one line */
    const char *more; /* options and notes, each line indented by four; "" when there are none */
    int (*run)(int argc, char **argv);
};

/* In the order a person meets them. */
static const struct command commands[] = {
    {"synth", "SHAPE OUT [--seed N] [--format image|hf] [--dense bf16|mxfp8] [--vocab FILE]",
     "make a random, seeded model image or checkpoint of a listed shape",
     "    --seed N       same seed, same bytes (default 1)\n"
     "    --format image write the model image OUT (default)\n"
     "    --format hf    write a Hugging Face checkpoint into the folder OUT; its weights equal the image's\n"
     "    --dense mxfp8  the dense matrices in MXFP8, as pack makes them (default: bf16)\n"
     "    --vocab FILE   o200k ranks, for shapes with the whole vocabulary (default: the installed "
     "o200k_base.tiktoken)\n",
     nib_cmd_synth},
    {"pack", "SOURCE OUT [--dense bf16|mxfp8] [--key SECRET] [--vocab FILE]",
     "turn a checkpoint into the model image OUT",
     "    SOURCE         a Hugging Face folder, OpenAI's original folder, or a GGUF file (the first of a split)\n"
     "    --dense mxfp8  QKV, attention output and LM head rounded to E4M3 with a scale a block of 32: half the bytes\n"
     "    --key SECRET   sign the image with the file NAME.key that keygen made\n"
     "    --vocab FILE   a .tiktoken file in place of the source's own tokenizer\n",
     nib_cmd_pack},
    {"plan", "[SHAPE | --all] [options]", "print the memory plan of a shape for this machine or any profile",
     "    --profile NAME      a name in etc/profiles, or a JSON file (default: this machine)\n"
     "    --device DEVICE     of this machine: auto, cpu or gpu (default auto)\n"
     "    --all               a line each for 20b and 120b on every profile\n"
     "    --dense FORM        of the dense matrices: bf16 or mxfp8 (default bf16)\n"
     "    --kv FORM           of keys and values: bf16 or fp8 (default bf16)\n"
     "    --context N         longest sequence, tokens (default: the largest that fits)\n"
     "    --slots N           sequences at once (default: the row's)\n"
     "    --threads N         CPU rows: worker threads (default: the CPUs of this process)\n"
     "    --memory-limit SIZE plan as if the memory were this small, e.g. 12G\n"
     "    --mask ROWS         pass over these rows of the capability table, e.g. amx,avx512\n"
     "    --json              machine-readable\n",
     nib_cmd_plan},
    {"arch", "[--profile NAME] [--mask ROWS] [--device DEVICE]",
     "print the capability table, and why each row was taken or passed over",
     "    --profile NAME      a name in etc/profiles, or a JSON file (default: this machine's GPU, else its CPU)\n"
     "    --mask ROWS         pass over these rows, e.g. sm90,sm80\n"
     "    --device DEVICE     of this machine: auto, cpu or gpu (default auto)\n",
     nib_cmd_arch},
    {"selftest", "[--row ROW] [--device DEVICE] [--shape SHAPE] [--all]",
     "test the kernels of every row that this machine can run against known answers",
     "    --row ROW           only this row of the capability table\n"
     "    --device DEVICE     auto, cpu or gpu: whose rows (default auto: all)\n"
     "    --shape SHAPE       as wide as this shape (default 20b)\n"
     "    --all               a line for every kernel, not only for those that are wrong\n",
     nib_cmd_selftest},
    {"bench", "IMAGE | --shape SHAPE [options]",
     "measure prefill and decode beside the memory's read rate; needs no daemon",
     "    --prompt N          tokens of the prompt (default 256)\n"
     "    --tokens N          decode steps (default 64)\n"
     "    --batch N           sequences at once (default 1)\n"
     "    --rows N            rows of a step\n"
     "    --threads N         worker threads (default: the CPUs of this process)\n"
     "    --device DEVICE     auto, cpu or gpu (default auto: the GPU when there is one)\n"
     "    --shape SHAPE       GPU only: no image but made-up weights of that shape\n"
     "    --dense FORM        of the dense matrices of --shape: bf16 or mxfp8 (default bf16)\n"
     "    --kv FORM           of keys and values: bf16 or fp8 (default bf16)\n"
     "    --mask ROWS         pass over these rows of the capability table, e.g. amx,avx512\n"
     "    --memory-limit SIZE plan as if the memory were this small\n"
     "    --format FORMAT     text, json or csv\n",
     nib_cmd_bench},
    {"bench serve", "IMAGE | --shape SHAPE | --socket PATH [options]",
     "load a whole daemon with streamed requests over its socket, and measure how long they take",
     "    IMAGE               start a daemon of its own on this image\n"
     "    --shape SHAPE       GPU only: start one on made-up weights of that shape\n"
     "    --dense FORM        of the dense matrices of --shape: bf16 or mxfp8 (default bf16)\n"
     "    --kv FORM           of keys and values: bf16 or fp8 (default bf16)\n"
     "    --socket PATH       a daemon that runs already\n"
     "    --clients LIST      so many clients, each asking again when its answer ends, e.g. 1,8,64 (default 1)\n"
     "    --rates LIST        so many requests a second, arriving at random (Poisson), e.g. 0.5,1,2\n"
     "    --requests LIST     requests of each load, or one number for all (default: 2 a client and 16 at least; 64 "
     "with\n"
     "                        --rates)\n"
     "    --beside N          each load a second time, while one more client sends prompts of N tokens\n"
     "    --prompt N          tokens of a prompt (default 256)\n"
     "    --tokens N          tokens of an answer (default 64)\n"
     "    --temperature T     of the answers (default 1)\n"
     "    --seed N            same seed, same requests and arrivals (default 1)\n"
     "    --json FILE         write all figures\n"
     "    --plot FILE         write an SVG plot of the latencies against the load\n"
     "    --device DEVICE     of its own daemon: auto, cpu or gpu (default auto)\n"
     "    --threads N         of its own daemon: worker threads\n"
     "    --slots N           of its own daemon: requests that run at once (default: the most clients)\n"
     "    --memory-limit SIZE of its own daemon: plan as if the memory were this small\n"
     "    --vocab FILE        with --shape: o200k ranks (default: the installed o200k_base.tiktoken)\n",
     nib_cmd_bench_serve},
    {"chat", "[QUESTION] [options]", "talk to a running nibbled; with QUESTION ask that and end",
     "    Ctrl-C stops the answer, Ctrl-D ends the chat; /help lists what may be typed.\n"
     "    --demo         start the trained model that is shipped, ask it three questions (or QUESTION), talk to it\n"
     "    --socket PATH  the daemon's socket (default: $NIBBLED_SOCKET, or /run/nibbled/nibbled.sock)\n"
     "    --effort LEVEL reasoning effort: low, medium or high\n"
     "    --system TEXT  instructions for the whole conversation\n"
     "    --max-tokens N longest answer, reasoning included\n"
     "    --no-color     plain text even on a terminal\n"
     "    --quiet        no line of statistics after an answer\n",
     nib_cmd_chat},
    {"info", "IMAGE [--json] [--tensors]", "say what a model image holds, from its header alone",
     "    --json         one JSON object\n"
     "    --tensors      list every tensor too\n",
     nib_cmd_info},
    {"verify", "IMAGE [--key PUBLIC]", "check every byte of a model image against its hashes",
     "    --key PUBLIC   the image must also be signed by this key: a file, or 64 hex digits\n", nib_cmd_verify},
    {"keygen", "NAME", "make an Ed25519 key pair: NAME.key (secret, mode 0600) and NAME.pub",
     "    Each file is one line of 64 hex digits.\n", nib_cmd_keygen},
    {"sign", "IMAGE --key SECRET", "check a model image, then sign its header in place",
     "    --key SECRET   the file NAME.key that keygen made\n", nib_cmd_sign},
};

#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_command(FILE *out, const struct command *c)
{
    (void)fprintf(out, "  nibble %s %s\n    %s\n%s", c->name, c->args, c->help, c->more);
}

static void print_help(FILE *out)
{
    size_t count;
    const struct nib_shape *shapes = nib_shapes(&count);
    (void)fprintf(out, "nibble %s: the command of nibbled, the gpt-oss inference daemon\n\nCommands:\n", NIB_VERSION);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        print_command(out, &commands[i]);
    (void)fprintf(out, "\nnibble COMMAND --help shows one command; nibble --version the version.\nShapes:");
    for (size_t i = 0; i < count; i++)
        (void)fprintf(out, " %s", shapes[i].name);
    (void)fprintf(out, "\nExit codes: 0 done, 1 refused or failed, 2 wrong usage.\n");
}

/* The command whose words argv begins with, the longest name first; *ret_words are its words. */
static const struct command *find(int argc, char **argv, int *ret_words)
{
    for (int words = argc > 2 ? 2 : 1; words > 0; words--) {
        char name[64];
        (void)snprintf(name, sizeof name, "%s%s%s", argv[1], words == 2 ? " " : "", words == 2 ? argv[2] : "");
        *ret_words = words;
        for (size_t i = 0; i < COMMAND_COUNT; i++)
            if (strcmp(name, commands[i].name) == 0)
                return &commands[i];
    }
    return NULL;
}

static int run(const struct command *c, int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_command(stdout, c);
            return NIB_EXIT_OK;
        }
    static char name[32]; /* what getopt calls the program */
    (void)snprintf(name, sizeof name, "nibble %s", c->name);
    argv[0] = name;
    int code = c->run(argc, argv);
    if (code == NIB_EXIT_USAGE)
        (void)fprintf(stderr, "usage: nibble %s %s\n", c->name, c->args);
    return code;
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(argc < 2 ? stderr : stdout);
        return argc < 2 ? NIB_EXIT_USAGE : NIB_EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)printf("nibble %s\n", NIB_VERSION);
        return NIB_EXIT_OK;
    }
    int words;
    const struct command *c = find(argc, argv, &words);
    if (c)
        return run(c, argc - words, argv + words);
    (void)fprintf(stderr, "nibble: no command \"%s\"; nibble --help lists them\n", argv[1]);
    return NIB_EXIT_USAGE;
}
