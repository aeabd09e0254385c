/* tools/commands.h: the subcommands of `nibble`. Each gets its own argc and argv (argv[0] is its
 * name) and returns a process exit code: 0 done, 1 refused or failed, 2 wrong usage. A new command
 * adds a line here and a row in tools/main.c. */
#ifndef NIB_TOOLS_COMMANDS_H
#define NIB_TOOLS_COMMANDS_H

#define NIB_EXIT_OK     0
#define NIB_EXIT_FAILED 1
#define NIB_EXIT_USAGE  2

int nib_cmd_arch(int argc, char **argv);
int nib_cmd_bench(int argc, char **argv);
int nib_cmd_bench_serve(int argc, char **argv);
int nib_cmd_chat(int argc, char **argv);
int nib_cmd_info(int argc, char **argv);
int nib_cmd_keygen(int argc, char **argv);
int nib_cmd_pack(int argc, char **argv);
int nib_cmd_plan(int argc, char **argv);
int nib_cmd_selftest(int argc, char **argv);
int nib_cmd_sign(int argc, char **argv);
int nib_cmd_synth(int argc, char **argv);
int nib_cmd_verify(int argc, char **argv);

#endif
