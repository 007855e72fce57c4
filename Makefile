# make lab    try the appliance: an emulated Proxmox host with three apps, until Ctrl-C
# make test   every test, in private network namespaces
# make bench  CPU per request and per query as ratios to nginx, HAProxy, Caddy and dnsmasq; memory; time to be live
# make lint   formatting, clippy, purity of the cores
#
# Each installs the Debian or Ubuntu packages that it lacks when it runs as root, and names them otherwise.

CARGO ?= cargo

.PHONY: lab test bench lint build deps deps-test deps-bench

lab: deps
	$(CARGO) build --release -p proximity-appliance -p proximity-lab
	@exec $(CARGO) run -q --release -p proximity-lab -- up

test: deps-test
	ci/purity
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --no-run
	$(CARGO) run -q -p proximity-lab -- enter -- $(CARGO) test --workspace --offline

bench: deps-bench
	$(CARGO) build --profile dist -p proximity-benches
	$(CARGO) run -q --profile dist -p proximity-benches --bin bench

lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	ci/purity

build: deps
	$(CARGO) build --profile dist -p proximity-appliance

deps:
	@ci/packages build lab

deps-test:
	@ci/packages build lab test

deps-bench:
	@ci/packages build lab bench
