# `make` lists the targets. Everything that needs a network works in namespaces of its own.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo build test fuzz soak sanitize lint bench report-tcp doc clean

# Under sudo, the Rust that rustup installed for the calling user.
ifdef SUDO_USER
SUDO_HOME := $(shell getent passwd $(SUDO_USER) | cut -d: -f6)
export PATH := $(PATH):$(SUDO_HOME)/.cargo/bin
export RUSTUP_HOME ?= $(SUDO_HOME)/.rustup
endif

# ... and what root built is his afterwards.
GIVE_BACK = $(if $(SUDO_UID),trap 'chown -R "$$SUDO_UID:$$SUDO_GID" target Cargo.lock' EXIT;)

NEED_ROOT = if (( EUID != 0 )); then echo "make $@ needs root to make network namespaces: run \`sudo make $@\`." >&2; exit 1; fi

# The crates that may hold `unsafe`: stack/buf, stack/disk, dpdk, and the C face of tests/packetdrill. The others forbid
# it; only a test that counts allocations needs it for its allocator.
SAFE_ROOTS := lib.rs apps/src/main.rs tests/src/lib.rs $(patsubst %,tests/%/src/lib.rs,fuzz packetdrill sim) $(patsubst %,stack/%/src/lib.rs,core http link sim tcp timer wire)

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r target what; do printf 'make %-10s %s\n' "$$target" "$$what"; done

demo: ## install what is missing, build, serve files from a namespace, check and measure it (root)
	@$(NEED_ROOT); $(GIVE_BACK) tools/demo

build: ## build the program: target/release/millstream
	@tools/install-packages build
	cargo build --release --locked -p millstream-apps --bin millstream

test: ## run all tests: unit, property, simulation, and the kernel's TCP in namespaces (root)
	@$(NEED_ROOT); tools/install-packages build test
	@$(GIVE_BACK) tools/test

fuzz: ## fuzz every target for a minute; others by `make fuzz SECONDS=600 TARGET=frames`
	@tools/install-packages build fuzz
	@$(GIVE_BACK) tools/fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(TARGET),--target $(TARGET))

soak: ## 10^9 random operations on the arena, then scenarios in virtual time for HOURS=1, or one again: SEED=123 (TRACE=1 prints its frames)
	@tools/install-packages build
	@$(if $(SEED),,cargo run --locked --quiet --release -p millstream-buf --example oracle -- $(or $(ORACLE_OPS),1_000_000_000))
	@cargo run --locked --quiet --release -p millstream-tests-sim --bin soak -- \
	    $(if $(SEED),--seed $(SEED) $(if $(TRACE),--trace),--hours $(or $(HOURS),1)) $(if $(SMOLTCP),--smoltcp)

sanitize: ## run the arena's tests under AddressSanitizer and valgrind
	@$(GIVE_BACK) tools/sanitize

lint: ## check formatting, clippy, documentation and that `unsafe` stays in its crates
	@tools/install-packages build
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --workspace
	@lax=$$(grep -L '^#!\[forbid(unsafe_code)\]' $(SAFE_ROOTS) || true); \
	stray=$$(find apps tests stack build.rs lib.rs -name '*.rs' -not -path 'stack/buf/*' -not -path 'stack/disk/*' -not -path 'tests/packetdrill/face/*' -not -name 'allocation*.rs' \
	    -exec grep -nE '\bunsafe +(\{|fn|impl|extern|trait)' {} + || true); \
	if [[ -n $$lax$$stray ]]; then echo "unsafe code belongs into stack/buf, stack/disk, dpdk and tests/packetdrill/face only, but see:" >&2; printf '%s\n' $$lax "$$stray" >&2; exit 1; fi

bench: ## measure all figures; one by `make bench ONLY=pingpong` (root for those on interfaces)
	@tools/install-packages build bench
	@$(GIVE_BACK) cargo bench --locked -p millstream-apps --bench figures -- $(if $(ONLY),--only $(ONLY))

report-tcp: ## measure throughput and fairness of all controllers in virtual time: docs/tcp.md
	@tools/install-packages build
	@$(GIVE_BACK) cargo run --locked --quiet --release -p millstream-tests-sim --bin report-tcp

doc: ## write the documentation: target/doc/millstream/index.html
	@tools/install-packages build
	cargo doc --locked --no-deps --workspace --exclude millstream-apps --exclude millstream-tests

clean: ## remove what was built
	cargo clean
