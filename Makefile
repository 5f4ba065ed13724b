# SPDX-License-Identifier: MIT
# ssmd: `make` alone prints this file's targets. Objects go to build/<flavour>/, so that sanitizers and release never mix.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.SECONDARY:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VERSION := $(shell sed -n 's/^## \([0-9][0-9.]*\).*/\1/p' CHANGELOG.md 2>/dev/null | head -1)
FLAVOUR ?= release
BUILD   := build/$(FLAVOUR)
PREFIX  ?= /usr/local
JOBS    ?= $(shell nproc)

CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
NVCC      ?= $(shell command -v nvcc 2>/dev/null)
CUDA_ARCH ?= sm_90
# `make all` builds the CUDA library too where there is a compiler for it, of CUDA 12 or newer.
NVCC_RELEASE := $(if $(NVCC),$(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p'),0)
CUDA_TOO     := $(if $(filter release,$(FLAVOUR)),$(shell [ "0$(NVCC_RELEASE)" -ge 12 ] && echo build/release/libssm_cuda.so))

# V=1 shows whole commands.
Q = $(if $(V),,@printf '  %s\n' $@; )
# Sanitizers shift what gcc can see through, and its -Wconversion with it: warnings are the release build's business.
WARN := -Wall -Wextra $(if $(filter release,$(FLAVOUR)),-Wconversion -Werror)
OPT_release := -O3
OPT_asan    := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
OPT_tsan    := -O1 -fsanitize=thread -fno-omit-frame-pointer
OPT_fuzz    := -O1 -fsanitize=address,undefined,fuzzer-no-link -fno-omit-frame-pointer

# One outside library a row: pkg-config's name. msgpack-c is called msgpack on older systems.
MSGPACK  := $(shell pkg-config --exists msgpack-c 2>/dev/null && echo msgpack-c || echo msgpack)
PACKAGES := kissfft-float sndfile jansson libxxhash yaml-0.1 libuv libzmq $(MSGPACK) portaudio-2.0 libudev speexdsp libmicrohttpd libmosquitto
PKG_CFLAGS = $(subst -I/,-isystem /,$(shell pkg-config --cflags $(PACKAGES) 2>/dev/null))
PKG_LIBS   = $(shell pkg-config --libs $(PACKAGES) 2>/dev/null)

CFLAGS  = -std=gnu11 -g $(OPT_$(FLAVOUR)) $(WARN) -I. -D_GNU_SOURCE -DSSM_VERSION='"$(VERSION)"' \
          -DSSM_SOURCE_MODELS='"$(CURDIR)/model/pretrained"' -DSSM_MODELS='"$(PREFIX)/share/ssmd/models"' -DSSM_LIBRARIES='"$(PREFIX)/lib"' \
          -ffp-contract=off -fPIC -pthread $(PKG_CFLAGS) -MMD -MP
LDFLAGS = $(OPT_$(FLAVOUR)) -pthread
LDLIBS  = $(PKG_LIBS) -lm -ldl

objects = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB     := $(call objects,$(wildcard kernels/*.c dsp/*.c model/*.c))
HOUSE   := $(LIB) $(call objects,$(wildcard config/*.c) $(filter-out daemon/main.c,$(wildcard daemon/*.c)))
TOOL    := $(call objects,$(wildcard clients/*.c))
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(sort $(wildcard tests/test_*.c)))
SCRIPTS := $(sort $(wildcard tests/test_*.py tests/test_*.sh))
BENCHES := $(patsubst tests/%.c,$(BUILD)/tests/%,$(sort $(wildcard tests/bench_*.c)))
FUZZERS := $(patsubst tests/%.c,build/fuzz/tests/%,$(filter-out tests/fuzz_main.c,$(sort $(wildcard tests/fuzz_*.c))))
BRIEF   := $(patsubst build/fuzz/tests/%,$(BUILD)/tests/brief_%,$(FUZZERS)) # run for a moment, without libFuzzer

# Lets the compiler use vectors where floats are compared; changes no result, and nobody here asks what was trapped.
$(BUILD)/dsp/sound_file.o: CFLAGS += -fno-trapping-math
$(BUILD)/kernels/avx2.o:   CFLAGS += -mavx2 -mfma
$(BUILD)/kernels/avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512

# These have a make of their own, with its jobs: beside each other they would build the same files.
ifneq ($(filter all demo test,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif

help: ## print this
	@echo "ssmd $(VERSION): live signals inside a selective state space"
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

all: deps ## the daemon and the tool: build/release/ssmd, build/release/ssm, libssm.a, libssm.so; with nvcc libssm_cuda.so
	@$(MAKE) -j$(JOBS) --no-print-directory $(BUILD)/ssmd $(BUILD)/ssm $(BUILD)/libssm.a $(BUILD)/libssm.so $(CUDA_TOO)

$(BUILD)/ssmd: $(BUILD)/daemon/main.o $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/ssm: $(TOOL) $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/libssm.a: $(LIB)
	$(Q)rm -f $@ && ar rcs $@ $^
$(BUILD)/libssm.so: $(LIB)
	$(Q)$(CC) $(LDFLAGS) -shared -Wl,-soname,libssm.so.1 -o $@ $^ $(LDLIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<
# Finds scripted devices where the program finds GPUs.
$(BUILD)/tests/test_daemon_fault: LDFLAGS += -Wl,--wrap=backend_cuda_find
$(BUILD)/tests/test_belt: $(BUILD)/clients/belt.o
$(BUILD)/tests/test_recall: $(BUILD)/clients/recall.o
# The programs, any of whose calls can be made to fail: a row of tests/faults.c wraps each.
FAULTY := $(BUILD)/tests/faulty_ssmd $(BUILD)/tests/faulty_ssm
$(FAULTY): LDFLAGS += $(shell sed -n 's/^FAULT[A-Z_]*.[^,]*, *\([a-zA-Z0-9_]*\), .*/-Wl,--wrap=\1/p' tests/faults.c)
$(BUILD)/tests/faulty_ssmd: $(BUILD)/tests/faults.o $(BUILD)/daemon/main.o $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/tests/faulty_ssm: $(BUILD)/tests/faults.o $(TOOL) $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/tests/bench_%: $(BUILD)/tests/bench_%.o $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/tests/brief_fuzz_%: $(BUILD)/tests/fuzz_%.o $(BUILD)/tests/fuzz_main.o $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
build/fuzz/tests/fuzz_%: build/fuzz/tests/fuzz_%.o $(HOUSE)
	$(Q)$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

demo: all ## clean a real recording through the real daemon, with figures and pictures
	tests/demo.sh $(BUILD)

test: all ## every test (T=ring: one file; F='*full*': the cases of that name)
	@$(MAKE) -j$(JOBS) --no-print-directory test-programs
	@tests/run.sh $(BUILD) '$(T)' '$(F)' $(TESTS) $(SCRIPTS)
# Scripts have programs too.
test-programs: $(if $(T),$(filter %/test_$(T),$(TESTS)),$(TESTS)) $(if $(filter faults,$(or $(T),faults)),$(FAULTY)) \
               $(if $(filter fuzz,$(or $(T),fuzz)),$(BRIEF))

asan: ## every test under AddressSanitizer and UndefinedBehaviourSanitizer
	$(MAKE) test FLAVOUR=asan
tsan: ## every test under ThreadSanitizer
	$(MAKE) test FLAVOUR=tsan

soak-subscribers: all ## a hundred subscribers of whom some stop, crawl or die, for two minutes
	@SSM=$(BUILD)/ssm SSMD=$(BUILD)/ssmd SUBSCRIBERS=100 SECONDS=30 /usr/bin/python3 tests/test_subscribers.py

soak-joins: all ## a million joins, leaves and fresh starts in 512 slots: some minutes
	@$(MAKE) -j$(JOBS) --no-print-directory T=engine test-programs
	CHANGES=1000000 CMOCKA_TEST_FILTER='*512*' $(BUILD)/tests/test_engine

soak-capacity: all ## twice 48 streams of denoise-16k are offered for four minutes: a million hops
	@SSM=$(BUILD)/ssm SSMD=$(BUILD)/ssmd CAPACITY=48 OFFER_SECONDS=215 OFFERED_MODEL=denoise-16k /usr/bin/python3 tests/test_late.py

soak-month: all ## thirty days of a clock that runs 4,000 times as fast, in eleven minutes
	@$(MAKE) -j$(JOBS) --no-print-directory T=month test-programs
	MONTH_DAYS=30 MONTH_PACE=4000 $(BUILD)/tests/test_month

soak-reload: all ## 10,000 reloads and 1,000 swaps of models beside 64 streams: an hour or less
	@SSM=$(BUILD)/ssm SSMD=$(BUILD)/ssmd RELOADS=10000 SWAPS=1000 STREAMS=64 /usr/bin/python3 tests/test_reload.py
soak-devices: all ## a sound server's device goes 200 times, the server 50 times, a helper 50 times: some ten minutes
	@SSM=$(BUILD)/ssm SSMD=$(BUILD)/ssmd PLUGS=200 KILLS=50 STRICT=1 /usr/bin/python3 tests/test_devices.py

faults: all ## memory, descriptors, disk, threads: each place in our code that asks for one finds none, once
	@$(MAKE) -j$(JOBS) --no-print-directory T=faults test-programs
	@SSM_BUILD=$(BUILD) FAULTS_SITES=0 /usr/bin/python3 tests/test_faults.py

valgrind: all ## the unit tests, the daemon and the tool under memcheck, where there is a valgrind: an hour
	@$(MAKE) -j$(JOBS) --no-print-directory test-programs
	@tests/valgrind.sh $(BUILD) $(TESTS)

FUZZ_SECONDS ?= 300
fuzz: deps ## each fuzzer for FUZZ_SECONDS (300) over its corpus in tests/data
	@$(MAKE) -j$(JOBS) --no-print-directory FLAVOUR=fuzz CC=clang WARN='-Wall -Wextra' fuzz-programs
	@tests/fuzz.sh $(FUZZ_SECONDS) $(FUZZERS)
fuzz-programs: $(FUZZERS)

bench: all ## kernels and engine against their floors and peers, on this CPU
	@$(MAKE) -j$(JOBS) --no-print-directory $(BENCHES)
	@for b in $(BENCHES); do $$b; done
	@$(BUILD)/ssm bench

CUDA := $(patsubst %,build/release/%.o,$(wildcard kernels/cuda/*.cu model/cuda/*.cu))
# For Hopper with what it alone has (wgmma), and as PTX for the cards after it.
CUDA_CODE_sm_90 := -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_90,code=compute_90
NVCCFLAGS = -std=c++17 -O3 $(or $(CUDA_CODE_$(CUDA_ARCH)),-arch=$(CUDA_ARCH)) -I. -Xcompiler -fPIC,-Wall,-Wextra

# Behind `all` where both are asked for: it builds the same.
cuda: $(if $(filter all demo test bench install,$(MAKECMDGOALS)),all) ## the CUDA kernels and backend: build/release/libssm_cuda.so (needs nvcc)
	@$(MAKE) -j$(JOBS) --no-print-directory build/release/libssm_cuda.so

# Its own copies of what it shares with the program: it calls nothing in who opens it.
build/release/libssm_cuda.so: $(CUDA) build/release/model/refuse.o build/release/model/team.o build/release/dsp/clock.o
	$(Q)$(NVCC) -shared -Xlinker -Bsymbolic -o $@ $^
build/release/%.cu.o: %.cu
	@[ -n "$(NVCC)" ] || { echo "make cuda: no nvcc on the PATH; install the CUDA toolkit or say NVCC=/path/to/nvcc" >&2; exit 69; }
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MP -c -o $@ $<

# A .cu in tests/cuda stands alone, with the kernels; a .c is a program of this project that asks for the library.
CUDA_PROGRAMS := $(patsubst %.cu,build/release/%,$(wildcard tests/cuda/test_*.cu tests/cuda/bench_*.cu)) \
                 $(patsubst %.c,build/release/%,$(wildcard tests/cuda/*.c))
CUDA_RUN := SSM_CUDA_LIBRARY=build/release/libssm_cuda.so
# A Python that has PyTorch, looked for where one is asked for, once.
PYTORCH = $(eval PYTORCH := $(firstword $(foreach p,python3 /usr/bin/python3,$(shell $(p) -c 'import torch' 2>/dev/null && echo $(p)))))$(PYTORCH)

test-cuda: ## every twin test on the GPU (exit 69: there is none)
	@$(MAKE) -j$(JOBS) --no-print-directory build/release/libssm_cuda.so $(CUDA_PROGRAMS)
	@$(CUDA_RUN) build/release/tests/cuda/test_backend
	@build/release/tests/cuda/test_layers
	@build/release/tests/cuda/bench_step --check
	@build/release/tests/cuda/bench_cluster --check
	@if [ -n "$(PYTORCH)" ]; then $(PYTORCH) model/train/check_scan.py build/release/libssm_cuda.so --no-timing; \
	 else echo "skipped: check_scan.py, the scan and its gradients, needs PyTorch"; fi
bench-cuda: ## the GPU against its floors and peers; keeps the results in tests/bench/results
	@$(MAKE) -j$(JOBS) --no-print-directory build/release/libssm_cuda.so $(CUDA_PROGRAMS)
	@$(CUDA_RUN) python3 tests/bench/gpu.py run
build/release/tests/cuda/%: build/release/tests/cuda/%.cu.o $(filter build/release/kernels/%,$(CUDA))
	$(Q)$(NVCC) -o $@ $^
build/release/tests/cuda/%: build/release/tests/cuda/%.o build/release/tests/cuda/poison.cu.o $(LIB)
	$(Q)$(NVCC) -o $@ $^ $(LDLIBS) -lcmocka

# A recipe's program, and its data; M alone says which.
TRAINER := $(strip \
    $(if $(filter vad tag-audio key-words digits,$(M)),tag.py $(M) --resume $(if $(DATA),$(if $(filter vad,$(M)),--parts,--data) $(DATA)),\
    $(if $(filter motion vibration-tags,$(M)),sensor.py $(M) --data $(DATA),\
    train.py --recipe $(M) --resume $(if $(DATA),--data $(DATA)) $(if $(VAL),--val $(VAL)) $(if $(INIT),--init $(INIT)))))
pytorch:
	@[ -n "$(PYTORCH)" ] || { echo "make $(MAKECMDGOALS): no Python with PyTorch here (apt: python3-torch; pip: torch)" >&2; exit 69; }
train: pytorch $(if $(NVCC),cuda) ## train M, a recipe of model/train, on DATA; goes on where it stopped (VAL, INIT, OUT, ARGS: model/train/README.md)
	@[ -n "$(M)" ] || { echo "make train: which model? M=denoise-16k, denoise-48k, vad, tag-audio, digits, motion ..." >&2; exit 64; }
	$(PYTORCH) model/train/$(TRAINER) --out $(or $(OUT),build/train/$(M)) $(ARGS)

test-train: pytorch all ## the smallest recipe on the CPU, two minutes, and the model that came of it (needs PyTorch)
	@rm -rf build/train/smoke && mkdir -p build/train
	@$(PYTORCH) model/train/selftest.py --recipe smoke --scan torch --seconds 1 --out build/train/selftest.txt
	@$(MAKE) --no-print-directory train NVCC= M=smoke ARGS='--device cpu'
	@for way in '' --step; do $(BUILD)/ssm denoise tests/data/demo-noisy.flac build/train/smoke/demo$$way.wav $$way --model build/train/smoke/smoke-int8.safetensors; done
	@cmp build/train/smoke/demo.wav build/train/smoke/demo--step.wav

layers: ## check who includes whom, and that one outside library lives in one file
	@tests/layers.sh
format: ## clang-format the lines that aren't committed yet
	git clang-format --force --extensions c,h,cu,cuh

install: all ## install to PREFIX (/usr/local); DESTDIR is honoured
	install -Dm755 -t "$(DESTDIR)$(PREFIX)"/bin $(BUILD)/ssmd $(BUILD)/ssm
	install -Dm644 -t "$(DESTDIR)$(PREFIX)"/include model/ssm.h
	install -Dm644 -t "$(DESTDIR)$(PREFIX)"/lib $(BUILD)/libssm.a
	install -Dm755 $(BUILD)/libssm.so "$(DESTDIR)$(PREFIX)"/lib/libssm.so.1
	ln -sf libssm.so.1 "$(DESTDIR)$(PREFIX)"/lib/libssm.so
	$(if $(CUDA_TOO),install -Dm755 -t "$(DESTDIR)$(PREFIX)"/lib $(CUDA_TOO))
	install -Dm644 -t "$(DESTDIR)$(PREFIX)"/share/ssmd/models $(wildcard model/pretrained/*)
	install -Dm644 -t "$(DESTDIR)$(PREFIX)"/share/ssmd/examples $(wildcard config/*.yaml)
	install -Dm644 -t "$(DESTDIR)$(PREFIX)"/share/ssmd config/schema.json
	install -Dm644 -t "$(DESTDIR)$(PREFIX)"/share/ssmd/grafana config/grafana.json
	install -Dm644 -t "$(DESTDIR)$(PREFIX)"/share/man/man8 daemon/ssmd.8
	install -d "$(DESTDIR)$(PREFIX)"/share/man/man1 "$(DESTDIR)$(PREFIX)"/share/man/man5 "$(DESTDIR)$(PREFIX)"/lib/systemd/system
	$(BUILD)/ssm --help | sed -n '/^Commands:/,/^$$/s/^  \([a-z]*\( [a-z]\+\)\?\)   *\(.*\)/.TP\n\\fB\1\\fR\n\3/p' | \
	  sed -e '/@COMMANDS@/{r /dev/stdin' -e 'd}' clients/ssm.1 >"$(DESTDIR)$(PREFIX)"/share/man/man1/ssm.1
	$(BUILD)/ssm schema --man >"$(DESTDIR)$(PREFIX)"/share/man/man5/ssmd.yaml.5
	sed 's|@PREFIX@|$(PREFIX)|' config/systemd/ssmd.service >"$(DESTDIR)$(PREFIX)"/lib/systemd/system/ssmd.service
	install -Dm644 config/systemd/ssmd.sysusers "$(DESTDIR)$(PREFIX)"/lib/sysusers.d/ssmd.conf
	install -Dm644 config/systemd/ssmd.tmpfiles "$(DESTDIR)$(PREFIX)"/lib/tmpfiles.d/ssmd.conf

deps: build/deps ## install what building and testing need (apt; asks for sudo only when it must)
build/deps: tests/deps.sh
	@mkdir -p build
	@tests/deps.sh
	@touch $@

clean: ## remove build/
	rm -rf build

.PHONY: help all demo test test-programs pytorch train test-train asan tsan soak-joins soak-capacity soak-subscribers soak-month soak-reload soak-devices faults valgrind fuzz fuzz-programs bench cuda test-cuda bench-cuda layers format install deps clean
-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d)
