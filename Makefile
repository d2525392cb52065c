# Every entry point of the project. `make` alone lists them.

# The program that `demo` and `bench` drive; any runtime with runc's command line will do.
ULTARI  ?= bin/ultari
# The companion that `demo-uctr` drives.
UCTR    ?= bin/uctr
# What `conformance` compares; the names of others, or paths, can be added.
RUNTIMES ?= ultari
PREFIX  ?= /usr/local
DESTDIR ?=

# What is installed with apt where it is missing. A C compiler and libc's static
# archive are there for linking; only a test's bridge to libseccomp is written in C.
BUILD_PACKAGES = $(if $(shell command -v cc),,gcc) libc6-dev busybox-static
TEST_PACKAGES  = $(BUILD_PACKAGES) libseccomp-dev util-linux procps strace iproute2 uidmap criu skopeo umoci \
	docker-registry apache2-utils openssl nftables bzip2 xz-utils zstd
# The kernel and the emulator of the VM are fetched by a script of its own and not installed; the one here brings libraries.
VM_PACKAGES    = $(TEST_PACKAGES) qemu-system-x86 cpio kmod systemd dbus dbus-user-session libpam-systemd
ENGINE_PACKAGES = $(BUILD_PACKAGES) util-linux procps iproute2 iptables docker.io containerd runc podman buildah \
	conmon catatonit netavark aardvark-dns slirp4netns fuse-overlayfs uidmap \
	containernetworking-plugins \
	protobuf-compiler python3-grpcio python3-protobuf python3-websocket
DEMO_PACKAGES  = $(BUILD_PACKAGES) util-linux procps iproute2 nftables docker-registry
BENCH_PACKAGES = $(BUILD_PACKAGES) util-linux crun runc hyperfine skopeo umoci strace time python3

# Static programs: an explicit --target keeps +crt-static away from build scripts
# and procedural macros, which must stay dynamically linked.
HOST       := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# The runtime itself has musl for its libc where the toolchain can have it: a program starts faster.
MUSL       := $(HOST:-gnu=-musl)
has-musl    = [ -d "$$(rustc --print target-libdir --target $(MUSL) 2>/dev/null)" ]
FAST        = $(shell $(has-musl) && echo $(MUSL) || echo $(HOST))
RELEASE     = $(TARGET_DIR)/$(FAST)/release
MANUAL     := $(TARGET_DIR)/manual
CARGO_ARGS := --locked --target $(HOST)
RUSTFLAGS  := -C target-feature=+crt-static
export RUSTFLAGS

FUZZ_PACKAGES  = $(BUILD_PACKAGES) g++ jq
FUZZ_SECONDS  ?= 600
FUZZ_TARGETS  ?= config process resources seccomp mount cgroup_path state
# Without those that try thousands of cases.
MIRI_TESTS    ?= spec:: cgroup::convert cgroup::unit_properties cgroup::devices netlink::tests::damaged state::tests::records state::tests::a_damaged --skip reduced_policies

# $(call cargo-install,NAME) builds a cargo command from the registry unless it is there.
cargo-install = command -v $(1) >/dev/null || RUSTFLAGS= cargo install --locked $(1)

# $(call apt,PACKAGES) installs those that are missing, and costs a few
# milliseconds when none is.
define apt
@command -v dpkg-query >/dev/null || { echo "Not a Debian system: make sure that you have what these packages bring: $(strip $(1))"; exit 0; }; \
missing=; \
for package in $(1); do \
	[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$package 2>/dev/null)" = installed ] || missing="$$missing $$package"; \
done; \
[ -n "$$missing" ] || exit 0; \
[ "$$(id -u)" = 0 ] || { echo "Missing packages; run as root: apt-get install$$missing" >&2; exit 1; }; \
echo "Installing$$missing"; \
export DEBIAN_FRONTEND=noninteractive; \
apt-get -qq -o DPkg::Lock::Timeout=600 update && \
apt-get -qq -o DPkg::Lock::Timeout=600 install --yes --no-install-recommends $$missing >/dev/null
endef

.PHONY: help build demo demo-uctr bundles test test-vm test-engines bench bench-vm bench-instructions bench-unpack link-order \
	crash-matrix load \
	conformance fuzz miri deny install clean deps deps-test deps-vm deps-engines deps-demo packages-test packages-vm packages-engines \
	packages-demo deps-bench deps-instructions deps-fuzz toolchain nightly root

help: ## List these targets
	@echo "Ultari: a low-level OCI container runtime. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  %-18s %s\n' "$$name" "$$text"; \
	done

# One after the other: together, what one asks of a dependency would be in the other, too.
build: deps toolchain $(MANUAL)/man8/ultari.8 ## Build the optimised static programs: bin/ultari, bin/uctr
	@for program in ultari:$(FAST) uctr:$(HOST); do \
		target=$${program#*:}; program=$${program%:*}; \
		echo "cargo build --locked --target $$target --release -p $$program --bin $$program"; \
		cargo build --locked --target $$target --release -p $$program --bin $$program && \
		install -D -m 755 $(TARGET_DIR)/$$target/release/$$program bin/$$program || exit 1; \
		case $$(LC_ALL=C ldd bin/$$program 2>&1) in \
		*"=>"*) echo "bin/$$program is dynamically linked; it must be static" >&2; exit 1 ;; \
		esac; \
		echo "bin/$$program: static, $$(($$(stat -c %s bin/$$program) / 1024)) KiB"; \
	done

# From the definitions of the command line: manual pages and completions, for `install`.
$(MANUAL)/man8/ultari.8: src/cli.rs $(shell find uctr/src/cli -name '*.rs') docs/manual.rs Cargo.lock | deps toolchain
	rm -rf $(MANUAL)
	cargo run --quiet $(CARGO_ARGS) -p uctr --example manual -- $(MANUAL)

demo: root bundles $(if $(filter bin/ultari,$(ULTARI)),build) ## Run a container that shows you around, from inside
	@id=hello-$$$$; code=0; \
	echo "\$$ $(ULTARI) run --bundle bundles/hello $$id"; \
	$(ULTARI) run --bundle bundles/hello $$id || code=$$?; \
	echo "\$$ echo \$$?"; \
	echo "$$code"; \
	if [ "$$code" != 7 ]; then \
		echo "The tour should have ended with 7: see above for what went wrong." >&2; \
		exit 1; \
	fi
	@echo
	@echo "Now look around yourself, in a shell in a container (exit leaves it):"
	@echo "  $(ULTARI) run -b bundles/shell sh1"

demo-uctr: root deps-demo $(if $(filter bin/uctr,$(UCTR)),build) ## Push an image to a registry, pull it and run it as a service on a port
	@UCTR="$(UCTR)" demo/uctr

bundles: deps bundles/hello/rootfs bundles/shell/rootfs ## Make the example bundles' root file systems

bundles/hello/rootfs: bundles/make-rootfs bundles/hello/tour.sh
	bundles/make-rootfs $@ bundles/hello/tour.sh

bundles/shell/rootfs: bundles/make-rootfs
	bundles/make-rootfs $@

# The integration tests drive bin/ultari; only that needs the slow optimised build.
test: root deps-test toolchain ## Check format and lints, run the unit and integration tests
	@cargo fmt --version >/dev/null && cargo clippy --version >/dev/null || \
		{ echo "rustfmt and clippy are needed: rustup component add rustfmt clippy" >&2; exit 1; }
	cargo fmt --all --check
	cargo clippy $(CARGO_ARGS) --workspace --all-targets -- -D warnings
	@$(MAKE) --no-print-directory build
	cargo test $(CARGO_ARGS) --workspace

# Debian's kernel 6.12 on an emulated processor, this root filesystem under a throw-away layer.
test-vm: root deps-vm $(if $(filter bin/ultari,$(ULTARI)),build) ## Run the tests in a VM with cgroup v2: all, or TESTS="parts of names"
	@CARGO_ARGS="$(CARGO_ARGS)" ULTARI_BIN="$(abspath $(ULTARI))" tests/vm/tests $(TESTS)

# benches/run says what else can be set: QUICK=1, PEERS=DIR, CONTENDERS, MEASURE, WRITE.
bench: root deps-bench build ## Compare with crun, runc and the kernel's own floor: all of it, or QUICK=1
	cargo build --locked --target $(FAST) --release --example floor
	@python3 -B benches/tests.py
	@$(BENCH) benches/run

# The processor is emulated, so that a bit must do; a table of `make bench` has it as a row.
bench-vm: root deps-bench deps-vm build ## Measure `run` on cgroup v2 in a VM: a row of the table of `make bench`
	cargo build --locked --target $(FAST) --release --example floor
	@mkdir -p $(TARGET_DIR)/bench
	@code=0; $(BENCH) tests/vm/run plain sh -c 'exec env $(BENCH) benches/run vm' >$(TARGET_DIR)/bench-vm.log || code=$$?; \
		[ $$code = 0 ] || { cat $(TARGET_DIR)/bench-vm.log; exit $$code; }
	@tail -n 1 $(TARGET_DIR)/bench-vm.log >$(TARGET_DIR)/bench-vm.json
	@$(BENCH) benches/run report

# Only after the runtime has changed much: of a function that is not listed nothing is worse than a page fault.
link-order: root deps-test toolchain ## Find out anew which functions starting a container executes (src/sys/link-order.ld)
	CARGO_PROFILE_RELEASE_STRIP=none cargo build --locked --target $(FAST) --release --target-dir $(TARGET_DIR)/link-order \
		--bin ultari --example link-order
	built=$(TARGET_DIR)/link-order/$(FAST)/release; $$built/examples/link-order $$built/ultari \
		$$(rustc --print target-libdir --target $(FAST))/self-contained/libc.a >$(TARGET_DIR)/link-order.ld
	mv $(TARGET_DIR)/link-order.ld src/sys/link-order.ld

bench-instructions: deps-instructions build ## Count instructions, whatever the load: SAVE=1 keeps them to compare with
	cargo build --locked --target $(FAST) --release --example parts
	@ULTARI="$(ULTARI)" PARTS="$(RELEASE)/examples/parts" OUT="$(TARGET_DIR)/instructions.json" \
		BASELINE="$(BASELINE)" SAVE="$(SAVE)" benches/instructions

BENCH = ULTARI="$(ULTARI)" FLOOR="$(RELEASE)/examples/floor" OUT="$(TARGET_DIR)/bench" \
	PEERS="$(PEERS)" CONTENDERS="$(CONTENDERS)" MEASURE="$(MEASURE)" QUICK="$(QUICK)" WRITE="$(WRITE)"

bench-unpack: root deps-bench build ## Unpack an image of 600 MB and 25,000 files beside umoci, podman and containerd
	UCTR=bin/uctr OUT=$(TARGET_DIR)/bench benches/uctr-unpack

test-engines: root deps-engines $(if $(filter bin/ultari,$(ULTARI)),build) ## Drive Docker, containerd, CRI, Podman and Buildah: ENGINES="docker cri"
	ULTARI="$(ULTARI)" tests/engines/run $(ENGINES)

crash-matrix: root deps-test build ## Kill and fail every system call of every command (long)
	CRASH_MATRIX=1 cargo test $(CARGO_ARGS) --test integration -- --nocapture crash_matrix
	CRASH_MATRIX=1 UCTR_BIN=$(abspath bin/uctr) cargo test $(CARGO_ARGS) -p uctr -- --nocapture crash_matrix

load: root deps-test build ## 500 containers at once, 2000 by 8 workers, all calls for one id (long)
	LOAD=100 cargo test $(CARGO_ARGS) --test integration -- --nocapture --test-threads 1 load::

# The suite's programs are driven as they are; building them is their own README's business.
conformance: root deps-test $(if $(filter bin/ultari,$(ULTARI)),build) ## Run a built runtime-tools checkout: RUNTIME_TOOLS=DIR
	@[ -n "$(RUNTIME_TOOLS)" ] || { echo "RUNTIME_TOOLS=DIR: a built checkout of opencontainers/runtime-tools is needed" >&2; exit 1; }
	@ULTARI="$(ULTARI)" RUNTIMES="$(RUNTIMES)" tests/conformance/run "$(RUNTIME_TOOLS)"

# Crates that fuzzing needs stay out of the project's own lock file: fuzz/ has one of its own.
# Mocks of cgroup trees and of a state folder are in memory.
fuzz: deps-fuzz nightly ## Fuzz all parsers of input: FUZZ_SECONDS (600) each, FUZZ_TARGETS=names
	@$(call cargo-install,cargo-fuzz)
	@mkdir -p $(TARGET_DIR)
	@fuzz/seed
	@for target in $(FUZZ_TARGETS); do \
		echo "== $$target: $(FUZZ_SECONDS) s"; \
		memory=$$(mktemp -d /dev/shm/ultari-fuzz.XXXXXX); \
		RUSTFLAGS= TMPDIR=$$memory cargo +nightly fuzz run --target $(HOST) $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
			>$(TARGET_DIR)/fuzz-$$target.log 2>&1; code=$$?; \
		rm -rf $$memory; \
		sed -n '/INITED\|DONE\|^stat::number_of_executed/p' $(TARGET_DIR)/fuzz-$$target.log; \
		[ $$code = 0 ] || { tail -n 60 $(TARGET_DIR)/fuzz-$$target.log; exit 1; }; \
	done

# Unit tests that ask the kernel for nothing, interpreted: undefined behaviour would be an error.
miri: nightly ## Run the unit tests of pure code under Miri (long)
	@rustup component add --toolchain nightly miri rust-src
	RUSTFLAGS= MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-deterministic-floats" cargo +nightly miri test --locked --lib -- $(MIRI_TESTS)

# Licences, banned crates and sources need nothing but the registry; advisories have a database.
deny: toolchain ## Check licences, sources and known holes of all dependencies
	@$(call cargo-install,cargo-deny)
	cargo deny --locked --workspace check bans licenses sources
	@out=$$(cargo deny --locked --workspace check advisories 2>&1) && { echo "$$out"; exit 0; }; \
	case $$out in \
	*"failed to fetch advisory database"*) echo "advisories NOT checked: their database can't be fetched from here" ;; \
	*) echo "$$out" >&2; exit 1 ;; \
	esac

install: ## Install programs, manual pages and completions to $(DESTDIR)$(PREFIX) (after `make build`)
	@[ -x bin/ultari ] && [ -x bin/uctr ] && [ -e $(MANUAL)/man8/ultari.8 ] || \
		{ echo "bin/ultari or bin/uctr is not there: run make build first" >&2; exit 1; }
	install -D -m 755 bin/ultari $(DESTDIR)$(PREFIX)/bin/ultari
	install -m 755 bin/uctr $(DESTDIR)$(PREFIX)/bin/uctr
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 $(MANUAL)/man1/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 $(MANUAL)/man8/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	for program in ultari uctr; do \
		install -D -m 644 $(MANUAL)/completions/$$program.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$program && \
		install -D -m 644 $(MANUAL)/completions/_$$program $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_$$program && \
		install -D -m 644 $(MANUAL)/completions/$$program.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/$$program.fish || exit 1; \
	done

clean: ## Remove everything that was built
	cargo clean
	rm -rf bin bundles/*/rootfs bundles/*/rootfs.new

deps: ## Install the packages that building and the demo need
	$(call apt,$(BUILD_PACKAGES))

# What is installed may not start its daemons; the tests start them, away from the host.
deps-test deps-vm deps-engines deps-demo:
	@policy=/usr/sbin/policy-rc.d; \
	if [ "$$(id -u)" = 0 ] && [ ! -e $$policy ]; then \
		trap "rm -f $$policy" EXIT INT TERM; \
		install -m 755 /dev/null $$policy; \
		printf '#!/bin/sh\nexit 101\n' >$$policy; \
	fi; \
	$(MAKE) --no-print-directory $(@:deps-%=packages-%)

packages-test:
	$(call apt,$(TEST_PACKAGES))

packages-vm:
	$(call apt,$(VM_PACKAGES))

packages-demo:
	$(call apt,$(DEMO_PACKAGES))

packages-engines:
	$(call apt,$(ENGINE_PACKAGES))

deps-fuzz:
	$(call apt,$(FUZZ_PACKAGES))

deps-bench:
	$(call apt,$(BENCH_PACKAGES))

deps-instructions:
	$(call apt,$(BUILD_PACKAGES) valgrind python3)

toolchain:
	@[ -n "$(HOST)" ] || { echo "The Rust toolchain (1.89 or newer) is needed: cargo and rustc on the PATH" >&2; exit 1; }
	@$(has-musl) || rustup --quiet target add $(MUSL) || \
		echo "No $(MUSL): ultari is built with $(HOST) and takes 0.2 ms longer to start (rustup target add $(MUSL))"

nightly: toolchain
	@cargo +nightly --version >/dev/null || { echo "A nightly toolchain is needed: rustup toolchain install nightly" >&2; exit 1; }

root:
	@[ "$$(id -u)" = 0 ] || { echo "This needs root: it makes containers with cgroups." >&2; exit 1; }
