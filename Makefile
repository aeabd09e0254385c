# nibbled: one Makefile. `make help` lists the targets.
#
# Objects of a variant go to build/VARIANT: rel (optimised) or san (ASan + UBSan). A source file's folder decides
# where it is linked: core, arch and gpu form libnib.a, appliance is nibbled, tools is nibble, tests/core/X_test.c is
# the test program X_test. arch/x86/X_ISA.c is compiled for that instruction set only.

PREFIX  ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
CC      ?= gcc
VARIANT ?= rel
VERSION := 0.1.0
Q       := $(if $(V),,@)# V=1 shows the commands
MACHINE := $(shell uname -m)
B       := build/$(VARIANT)

PKGS     := yaml-0.1 libmicrohttpd jansson libcrypto libsystemd
TOOL_PKGS := libcurl libedit
WARN     := -Wall -Wextra -Wshadow -Wconversion -Werror
CFLAGS.rel := -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong
CFLAGS.san := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS.rel := -Wl,-z,relro,-z,now
LDFLAGS.san := -fsanitize=address,undefined
BASE     := -std=c11 -D_GNU_SOURCE -I. -fPIE -MMD -MP $(WARN) -DNIB_VERSION='"$(VERSION)"'
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) $(TOOL_PKGS) 2>/dev/null)
CFLAGS_ALL = $(BASE) $(CFLAGS.$(VARIANT)) $(PKG_CFLAGS) $(CFLAGS)
LDLIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -lpthread
TOOL_LDLIBS := $(shell pkg-config --libs $(TOOL_PKGS) 2>/dev/null)
LDFLAGS_ALL = -pie $(LDFLAGS.$(VARIANT)) $(LDFLAGS)
# `make travel`: programs look for libraries beside themselves first
ifneq ($(filter travel,$(MAKECMDGOALS)),)
B := build/carry
LDFLAGS_ALL += -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/lib'
endif

ISA.avx2   := -mavx2 -mfma -mf16c
ISA.avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma
ISA.amx    := $(ISA.avx512) -mavx512bf16 -mamx-tile -mamx-bf16

CORE_SRC := $(wildcard core/*.c)
ARCH_SRC := $(wildcard arch/*.c arch/ref/*.c gpu/*.c)
ifeq ($(MACHINE),x86_64)
ARCH_SRC += $(wildcard arch/x86/*.c)
endif
# GPU rows: nvcc makes one image a row, a cubin or PTX text, which arch/ROW/table.c embeds. Without nvcc there are none.
NVCC     ?= nvcc
NVCC_SM90 ?= -cubin -arch=sm_90a
NVCC_SM80 ?= -ptx -arch=compute_80
NVCC_FLAGS := -std=c++17 -O3 -I. --expt-relaxed-constexpr
ifneq ($(shell command -v $(NVCC)),)
GPU_ROWS := $(patsubst arch/%/kernels.cu,%,$(wildcard arch/sm90/kernels.cu arch/sm80/kernels.cu))
else
ifeq ($(filter print-tests,$(MAKECMDGOALS)),) # whose output is a list of files
$(info no $(NVCC): built without the GPU rows)
endif
endif
GPU_WITH := $(patsubst sm%,-DNIB_WITH_SM%,$(GPU_ROWS))
ARCH_SRC += $(patsubst %,arch/%/table.c,$(GPU_ROWS))
APPL_SRC := $(wildcard appliance/*.c)
TOOL_SRC := $(wildcard tools/*.c)
LIB_OBJ  := $(patsubst %.c,$(B)/%.o,$(CORE_SRC) $(ARCH_SRC))
APPL_OBJ := $(patsubst %.c,$(B)/%.o,$(APPL_SRC))
TOOL_OBJ := $(patsubst %.c,$(B)/%.o,$(TOOL_SRC))
TESTS    := $(filter-out $(if $(GPU_ROWS),,%/kernels_gpu_test),$(patsubst %.c,$(B)/%,$(wildcard tests/core/*_test.c tests/kernels/*_test.c tests/appliance/*_test.c tests/tools/*_test.c tests/gpu/*_test.c)))

.PHONY: all help demo check check-fast check-systemd tests travel tidy format vectors install uninstall clean setup print-tests FORCE
all: $(B)/nibbled $(B)/nibble

help:
	@echo "make              build nibbled and nibble into $(B)"
	@echo "make demo         install what is missing, build, start the daemon on a small trained model, ask it three questions"
	@echo "make check        install what is missing, build with sanitizers, run every test"
	@echo "make travel       programs and their libraries in build/travel, to run on a bare machine with a GPU"
	@echo "make check-systemd  run the installed daemon under systemd in a container (root, debootstrap, systemd-nspawn)"
	@echo "make tidy         check the tree's rules, formatting and clang-tidy"
	@echo "make vectors      recompute the reference vectors against tiktoken, openai-harmony and transformers (long)"
	@echo "make install      DESTDIR= PREFIX= SYSCONFDIR=  install programs, units, man pages, completion, configuration"
	@echo "make uninstall    DESTDIR= PREFIX= SYSCONFDIR=  remove them; the configuration stays"
	@echo "make clean        remove build/"
	@echo "VARIANT=san       build with ASan and UBSan; V=1 shows the commands"

$(B)/libnib.a: $(LIB_OBJ)
	@rm -f $@
	$(Q)echo "  AR  $@"; $(AR) rcs $@ $^

$(B)/nibbled: $(APPL_OBJ) $(B)/libnib.a
	$(Q)echo "  LD  $@"; $(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS)

# nibble shares the daemon's client-side and config code, but not its main
$(B)/nibble: $(TOOL_OBJ) $(filter-out $(B)/appliance/main.o,$(APPL_OBJ)) $(B)/libnib.a
	$(Q)echo "  LD  $@"; $(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS) $(TOOL_LDLIBS)

$(B)/arch/x86/%_avx2.o:   ISA := $(ISA.avx2)
$(B)/arch/x86/%_avx512.o: ISA := $(ISA.avx512)
$(B)/arch/x86/%_amx.o:    ISA := $(ISA.amx)
$(B)/arch/table.o: ISA := $(GPU_WITH)
# the files that know an installed path are compiled again when PREFIX or SYSCONFDIR is another
PLACED := $(B)/tools/profiles.o $(B)/tools/synth.o $(B)/tools/chat_demo.o $(B)/appliance/main.o
$(PLACED): BASE += -DNIB_DATADIR='"$(PREFIX)/share/nibbled"' -DNIB_SYSCONFDIR='"$(SYSCONFDIR)"'
$(PLACED): $(B)/places
$(B)/places: FORCE
	@mkdir -p $(dir $@)
	@echo '$(PREFIX) $(SYSCONFDIR)' | cmp -s - $@ || echo '$(PREFIX) $(SYSCONFDIR)' >$@

# made again when the rows that this machine can build change
$(B)/arch/table.o: build/gpu/with
build/gpu/with: FORCE
	@mkdir -p $(dir $@)
	@echo '$(GPU_WITH)' | cmp -s - $@ || echo '$(GPU_WITH)' >$@
$(B)/%.o: %.c
	@mkdir -p $(dir $@)
	$(Q)echo "  CC  $@"; $(CC) $(CFLAGS_ALL) $(ISA) -c -o $@ $<

build/gpu/sm90.image: NVCC_ROW = $(NVCC_SM90)
build/gpu/sm80.image: NVCC_ROW = $(NVCC_SM80)
build/gpu/%.image: arch/%/kernels.cu $(wildcard arch/cuda/* arch/sm90/*.h arch/sm90/*.cuh) arch/gpu_abi.h core/engine.h core/limits.h core/model.h
	@mkdir -p $(dir $@)
	$(Q)echo "  NVCC $@"; $(NVCC) $(NVCC_FLAGS) $(NVCC_ROW) -o $@ $<
$(B)/arch/sm90/table.o: build/gpu/sm90.image
$(B)/arch/sm90/table.o: ISA := -DNIB_IMAGE='"build/gpu/sm90.image"'
$(B)/arch/sm80/table.o: build/gpu/sm80.image
$(B)/arch/sm80/table.o: ISA := -DNIB_IMAGE='"build/gpu/sm80.image"'

tests: $(TESTS)
# runs on a machine that has only libc and libcuda; says so and passes where there is no device
GPU_TEST_OBJ := $(patsubst %,$(B)/tests/gpu/%.o,kernels_gpu_test rig model ops each steps head mxfp8 extremes invariance late token sampler bench)
$(B)/tests/gpu/late.o: ISA := -DNIB_IMAGE='"tests/gpu/late.ptx"'
$(B)/tests/gpu/late.o: tests/gpu/late.ptx
$(B)/tests/gpu/kernels_gpu_test: $(GPU_TEST_OBJ) $(B)/libnib.a
	$(Q)echo "  LD  $@"; $(CC) $(LDFLAGS_ALL) -o $@ $^ -lm -lpthread -ldl
# what tests/gpu/compare.py drives, and a measurement; not tests themselves
tests: $(B)/tests/gpu/logits $(B)/tests/core/lookup_bench
$(B)/tests/gpu/logits: $(B)/tests/gpu/logits.o $(filter-out $(B)/appliance/main.o,$(APPL_OBJ)) $(B)/libnib.a
	$(Q)echo "  LD  $@"; $(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS)
$(B)/tests/core/lookup_bench: $(B)/tests/core/lookup_bench.o $(filter-out $(B)/tools/main.o,$(TOOL_OBJ)) $(filter-out $(B)/appliance/main.o,$(APPL_OBJ)) $(B)/libnib.a
	$(Q)echo "  LD  $@"; $(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS) $(TOOL_LDLIBS)
$(B)/tests/kernels/kernels_test: $(patsubst %.c,$(B)/%.o,$(filter-out %_test.c,$(wildcard tests/kernels/*.c)))
$(B)/tests/%_test: $(B)/tests/%_test.o $(filter-out $(B)/tools/main.o,$(TOOL_OBJ)) $(filter-out $(B)/appliance/main.o,$(APPL_OBJ)) $(B)/libnib.a
	$(Q)echo "  LD  $@"; $(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS) $(TOOL_LDLIBS) $(shell pkg-config --libs check)

# what stands in for libcuda in tests: host memory, arch/ref's arithmetic, faults on request (tests/fake/fake.h). Without
# sanitizers, so that tests of the whole daemon stay quick; its thread-local variables are where LeakSanitizer does not guess
FAKE_SRC := $(wildcard tests/fake/*.c) $(wildcard arch/ref/*.c) arch/rope.c arch/gpu_abi.c core/err.c core/model.c core/mx.c \
            core/mx_block.c core/rng.c core/sample.c core/sample_cut.c core/sample_draw.c
FAKE_OBJ := $(patsubst %.c,$(B)/fake/%.o,$(FAKE_SRC))
tests: $(B)/tests/fake/libcuda.so
$(B)/fake/%.o: %.c
	@mkdir -p $(dir $@)
	$(Q)$(CC) $(filter-out -fPIE,$(BASE)) $(ISA) -O2 -g -fPIC -ftls-model=initial-exec -fvisibility=hidden -c -o $@ $<
$(B)/tests/fake/libcuda.so: $(FAKE_OBJ)
	@mkdir -p $(dir $@)
	$(Q)echo "  LD  $@"; $(CC) -shared -Wl,-z,defs,-z,nodelete -o $@ $^ -lm -lpthread

# a libcuda that hands everything to the real one and makes trouble once: tests/gpu/trouble.py
tests: $(B)/tests/gpu/libtrouble.so
$(B)/fake/tests/gpu/trouble.o: ISA := -DNIB_IMAGE='"tests/gpu/trouble.ptx"'
$(B)/fake/tests/gpu/trouble.o: tests/gpu/trouble.ptx
$(B)/tests/gpu/libtrouble.so: $(B)/fake/tests/gpu/trouble.o
	@mkdir -p $(dir $@)
	$(Q)echo "  LD  $@"; $(CC) -shared -Wl,-z,defs -o $@ $^ -ldl

# what tests put beneath the daemon to count what it takes: of libcuda, and of the C library (LD_PRELOAD)
COUNTERS := tests/gpu/count_cuda.so tests/wire/noalloc.so
tests: $(COUNTERS:%=$(B)/%)
$(COUNTERS:%=$(B)/%): $(B)/%.so: %.c gpu/cuda.h
	@mkdir -p $(dir $@)
	$(Q)echo "  LD  $@"; $(CC) $(filter-out -fPIE -MMD -MP,$(BASE)) -O1 -fPIC -fvisibility=default -shared -o $@ $< -ldl

# What runs on a machine with a GPU and nothing installed: the programs, and beside them in lib/ the libraries they need but
# the C library's own. Built here, carried there; DT_RPATH, since the libraries' own needs must be found too.
TRAVEL := nibbled nibble logits lookup_bench tests/gpu/libtrouble.so $(COUNTERS) $(patsubst tests/gpu/%.c,%,$(wildcard tests/gpu/*_gpu_test.c))
travel: $(patsubst %,build/travel/%,$(TRAVEL))
	@rm -rf build/travel/lib && mkdir -p build/travel/lib
	@for p in $^; do ldd $$p; done | awk '$$2 == "=>" && $$3 ~ /^\// {print $$3}' | sort -u | \
	    grep -v -E '/(libc|libm|libdl|librt|libpthread|libresolv)\.so' | xargs -r cp -L -t build/travel/lib
	@du -sh build/travel
build/travel/nibbled: $(B)/nibbled
build/travel/logits: $(B)/tests/gpu/logits
build/travel/lookup_bench: $(B)/tests/core/lookup_bench
build/travel/nibble: $(B)/nibble
build/travel/%.so: $(B)/%.so
	@mkdir -p $(dir $@)
	$(Q)echo "  CP  $@"; cp $< $@ && strip $@
build/travel/%_gpu_test: $(B)/tests/gpu/%_gpu_test
	@mkdir -p $(dir $@)
	$(Q)echo "  CP  $@"; cp $< $@ && strip $@
build/travel/nibbled build/travel/nibble build/travel/logits build/travel/lookup_bench:
	@mkdir -p $(dir $@)
	$(Q)echo "  CP  $@"; cp $< $@ && strip $@

# programs that the vectors' scripts drive; not tests themselves
$(B)/tests/vectors/%: $(B)/tests/vectors/%.o $(B)/libnib.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS)

# What is installed: source:destination:mode, destinations below PREFIX. /usr/local and /etc/nibbled.yaml in a
# text become what PREFIX and SYSCONFDIR say.
UNITS := lib/systemd/system
INSTALLED := \
	$(B)/nibbled:bin/nibbled:755 \
	$(B)/nibble:bin/nibble:755 \
	man/nibble.1:share/man/man1/nibble.1:644 \
	man/nibbled.8:share/man/man8/nibbled.8:644 \
	man/nibbled.yaml.5:share/man/man5/nibbled.yaml.5:644 \
	etc/completion/nibble.bash:share/bash-completion/completions/nibble:644 \
	etc/completion/nibbled.bash:share/bash-completion/completions/nibbled:644 \
	etc/systemd/nibbled.service:$(UNITS)/nibbled.service:644 \
	etc/systemd/nibbled.socket:$(UNITS)/nibbled.socket:644 \
	etc/systemd/nibbled.service.d/gpu.conf.example:$(UNITS)/nibbled.service.d/gpu.conf.example:644 \
	etc/sysusers.d/nibbled.conf:lib/sysusers.d/nibbled.conf:644 \
	etc/tmpfiles.d/nibbled.conf:lib/tmpfiles.d/nibbled.conf:644 \
	etc/o200k/o200k_base.tiktoken:share/nibbled/o200k_base.tiktoken:644 \
	etc/demo/demo.nib:share/nibbled/demo.nib:644 \
	$(foreach p,$(wildcard etc/profiles/*.json),$(p):share/nibbled/profiles/$(notdir $(p)):644)

install: $(B)/nibbled $(B)/nibble
	@tools/install.sh install "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)" $(INSTALLED)

uninstall:
	@tools/install.sh uninstall "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)" $(INSTALLED)

setup:
	@tools/setup.sh

demo: setup
	@$(MAKE) --no-print-directory VARIANT=rel all
	@tools/demo.sh

check: setup
	@tests/run.sh

print-tests:
	@echo $(TESTS)

# what `make check` runs, without installing anything
check-fast:
	@tests/run.sh --no-python

check-systemd:
	@tests/systemd.sh

vectors: setup
	@tests/vectors/make.sh

tidy:
	@tests/tidy.sh

format:
	clang-format -i $(shell git ls-files '*.c' '*.h')

clean:
	rm -rf build

-include $(B)/tests/gpu/logits.d $(B)/tests/core/lookup_bench.d $(FAKE_OBJ:.o=.d) $(B)/fake/tests/gpu/trouble.d $(LIB_OBJ:.o=.d) $(APPL_OBJ:.o=.d) $(TOOL_OBJ:.o=.d) $(TESTS:=.d) \
         $(GPU_TEST_OBJ:.o=.d) $(patsubst %.c,$(B)/%.d,$(wildcard tests/kernels/*.c))
