# Everything that people and CI run; `make help` lists it. `make demo` and `make
# check` need nothing but Go. `make test` needs a C compiler for the race detector,
# and what it starts: it installs PostgreSQL, PgBouncer, Chromium, lintian, rpm and rpmlint,
# and downloads nginx, Caddy, Prometheus and axe-core. It needs root
# where it installs our packages, and where it starts our image.

GO    ?= go
TOOL  := $(GO) tool -modfile=$(CURDIR)/tools/go.mod
PKGS  := ./...
# The version that binaries, image, packages and chart have; its time is that of all files
# in them, as two builds of a commit give the same. Both can be given, where git is not.
VERSION ?= $(shell deploy/version)
REVISION ?= $(shell git rev-parse HEAD)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
# A program of ours is static, and without debug information, which stack traces do not need.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -ldflags '-w -X main.release=$(VERSION)'
# Modules of their own, which ./... of the root leaves out. What others link comes with
# the oldest versions that it works with: its tests run with these.
MODULES := proto client client/drpctap examples/coderd bench integration deploy
LINKED  := proto client client/drpctap
# $(call each,modules,command) runs a command in each of them, up to one that fails.
each = for module in $(1); do echo "$$module: $(2)"; (cd $$module && $(2)) || exit 1; done
# The detector's instrumentation makes SQLite, C that was translated to Go, several times
# as slow. It shares no memory with ours: the driver copies, and is instrumented.
RACE  := -race -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc/...=-race=false
# At its end each program would wait for a second, for races that others still report.
# Tests leave nobody behind. The detector's own memory, some times that of the program,
# comes in huge pages: page faults are slow on virtual machines.
export GORACE ?= atexit_sleep_ms=0 no_huge_pages_for_shadow=0
# Packages with the longest tests begin first, so that no core waits in the end.
LONG  := ./simulate ./simulation ./aggregator ./internal/clienttest ./pushed
# Have tests that need PostgreSQL, which the short mode of go test leaves out.
SERVERS := ./store/... ./pubsub/... ./internal/postgrestest
# Have random tests, which draw less in the short mode, or bounds of allocations, which
# do not hold with the race detector, as it makes pools forget. Those that need servers
# have run whole.
PLAIN  = $(sort $(dir $(shell grep -rlE 'pgregory.net/rapid|testing\.Short\(\)|func Test[A-Za-z]*Allocations' \
	--include='*_test.go' --exclude-dir=client --exclude-dir=bench --exclude-dir=integration --exclude-dir=store --exclude-dir=pubsub .)))
# Where `make soak` and `make microbench` put their time.
FUZZTIME  ?= 2m
BENCHTIME ?= 1s

.PHONY: help chart packages build binaries sbom image archives release prepare-release check-release tag-release verify-release release-notes version demo demo-bridge check test test-servers test-race test-plain test-integration contract soak bench bench-peers microbench servers lint generate check-generated check-format check-contract fmt tidy vuln clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target what; do \
		printf '%-16s %s\n' "$$target" "$$what"; done

build: ## build bin/agentstatsd, static
	$(BUILD) -o bin/agentstatsd ./cmd/agentstatsd

# What a release has of the program, dist/linux-amd64/agentstatsd for one; whatever the
# environment says, the same for everybody with the same Go.
DIST      ?= dist
PLATFORMS ?= linux-amd64 linux-arm64
PROGRAMS  := $(PLATFORMS:%=$(DIST)/%/agentstatsd)
HOST      := $(DIST)/$(shell $(GO) env GOHOSTOS)-$(shell $(GO) env GOHOSTARCH)/agentstatsd
.PHONY: $(sort $(PROGRAMS) $(HOST))
binaries: $(PROGRAMS) ## build dist/PLATFORM/agentstatsd for each platform of a release
$(sort $(PROGRAMS) $(HOST)): $(DIST)/%/agentstatsd:
	GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) GOAMD64=v1 GOARM64=v8.0 GOFLAGS= GOEXPERIMENT= $(BUILD) -o $@ ./cmd/agentstatsd

# Lists of modules, of what the programs were linked with.
SBOMS := $(PROGRAMS:%=%.cdx.json)
.PHONY: $(SBOMS)
sbom: $(SBOMS) ## list the modules of each of these, as CycloneDX
$(SBOMS): %.cdx.json: %
	cd deploy && $(GO) run ./sbom -version '$(VERSION)' -created $(SOURCE_DATE_EPOCH) -output $(abspath $@) $(abspath $<)

comma := ,
image: $(SBOMS) ## write the image for all platforms to dist/image, an OCI layout
	cd deploy && $(GO) run ./image -version '$(VERSION)' -revision $(REVISION) -created $(SOURCE_DATE_EPOCH) \
		-platforms $(subst $() ,$(comma),$(PLATFORMS)) -programs $(abspath $(DIST)) -license ../LICENSE -output $(abspath $(DIST))/image

# Archives without anything of this machine: owner, umask, order and time are given.
NAME = $(DIST)/agentstatsd-$(VERSION)
TAR  = tar --sort=name --mtime=@$(SOURCE_DATE_EPOCH) --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --format=ustar
archives: $(SBOMS) image ## pack binaries, image, lists of modules, rules and dashboards into dist
	@for platform in $(PLATFORMS); do name=$(NAME)-$$platform; echo "packing $$name.tar.gz" && \
		cp $(DIST)/$$platform/agentstatsd.cdx.json $$name.cdx.json && \
		$(TAR) --transform "s,^,$${name##*/}/," -C $(DIST)/$$platform -cf $$name.tar agentstatsd -C $(CURDIR) LICENSE README.md CHANGELOG.md && \
		gzip -9nf $$name.tar || exit 1; done
	@echo "packing $(NAME)-image.tar" && $(TAR) -C $(DIST)/image -cf $(NAME)-image.tar blobs index.json oci-layout
	@$(call pack,prometheus,deploy/prometheus docs/runbooks)
	@$(call pack,grafana,deploy/grafana/dashboards)

# $(call pack,name,directories) packs what git has in directories.
pack = echo "packing $(NAME)-$(1).tar.gz" && git ls-files -z $(2) | grep -zv '\.go$$' | \
	$(TAR) --null --transform 's,^,agentstatsd-$(VERSION)-$(1)/,' -cf $(NAME)-$(1).tar -T - && gzip -9nf $(NAME)-$(1).tar

# The targets that build it. Nothing of an earlier one is left.
RELEASE := archives chart packages
release: ## build all of a release into dist, with SHA256SUMS
	rm -rf $(DIST)
	$(MAKE) --no-print-directory $(RELEASE)
	cd $(DIST) && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%f\n' | LC_ALL=C sort | xargs -d '\n' sha256sum >SHA256SUMS
	@echo "$(DIST) has $(VERSION)"

# What is done around it: RELEASE.md.
prepare-release: ## write VERSION into CHANGELOG.md and the modules' requirements
	cd deploy && $(GO) run ./release prepare -version '$(VERSION)'

check-release: ## say what keeps the checkout from being released as VERSION
	cd deploy && $(GO) run ./release check -version '$(VERSION)'

# One commit has the tags of all modules that others use.
tag-release: check-release ## tag the commit as VERSION, with all modules; pushes nothing
	@test -z "$$(git status --porcelain)" || { echo "files differ from the commit:"; git status --short; exit 1; }
	for module in '' proto/ client/ client/drpctap/; do git tag --annotate --message "agentstatsd $(VERSION)" "$${module}$(VERSION)" || exit 1; done

verify-release: ## look whether all in dist is whole, and of this version
	cd deploy && $(GO) run ./release verify -version '$(VERSION)' -dist $(abspath $(DIST)) -platforms $(subst $() ,$(comma),$(PLATFORMS))

release-notes: ## print what CHANGELOG.md says of VERSION
	@cd deploy && $(GO) run ./release notes -version '$(VERSION)'

chart: ## package the chart for Helm into dist, with the version of the release
	@mkdir -p $(DIST)
	cd deploy && $(GO) run ./helm/pack -version '$(VERSION)' -created $(SOURCE_DATE_EPOCH) -output $(abspath $(DIST))

# The manual page is printed by the program of this machine.
packages: $(sort $(PROGRAMS) $(HOST)) ## make the Debian and RPM packages of each platform into dist
	@$(foreach platform,$(PLATFORMS),(cd deploy && $(GO) run ./packages -version '$(VERSION)' -epoch $(SOURCE_DATE_EPOCH) -arch $(lastword $(subst -, ,$(platform))) \
		-program $(abspath $(DIST))/$(platform)/agentstatsd -printer $(abspath $(HOST)) -out $(abspath $(DIST))) &&) true

version: ## print the version of the checkout
	@echo $(VERSION)

demo: build ## run the service with a simulated fleet
	./bin/agentstatsd demo

# The stand-in for coderd is for tests, so it is a program of its own.
demo-bridge: build ## run the service beside a stand-in for a stock coderd, with agents that speak Coder's own protocol
	$(GO) build -o bin/stockcoderd ./internal/codertest/stockcoderd
	./bin/stockcoderd ./bin/agentstatsd

# In the short mode of go test, tests that need PostgreSQL are left out, and random
# ones draw less. Nothing is left out of `make test`.
check: check-format check-contract check-generated ## what needs no servers, in under 3 minutes once built: before each commit
	@$(call each,. $(LINKED),$(GO) vet ./...)
	@$(call each,. client client/drpctap,$(TOOL) golangci-lint run ./...)
	@$(call each,. $(LINKED),$(GO) test -short -timeout 4m ./...)

# All that CI checks: formatting, lint, generated code, the wire contract, vet, and
# every test. Tests of processes and of servers mostly wait, so they run beside the
# others. All give way to the processes of integration, which have deadlines.
test: servers lint check-generated ## all that CI checks: lint, generated code, every test, with the race detector
	@$(call each,. $(MODULES),$(GO) vet ./...)
	$(MAKE) --no-print-directory --jobs 4 --output-sync=target test-integration test-race test-servers test-plain

test-servers:
	nice $(GO) test $(RACE) -vet=off -timeout 14m $(SERVERS)

# With the race detector, which makes all several times as slow, random tests draw a
# fifth, and the simulation runs 20 seeds: the short mode. vet has seen all that is
# tested.
test-race:
	nice $(GO) test $(RACE) -vet=off -short -timeout 14m $(LONG) $(filter-out $(shell $(GO) list $(SERVERS)),$(shell $(GO) list $(PKGS)))

# Without it they draw all, and the simulation runs its 100 seeds. The other modules go
# first: they mostly wait.
test-plain:
	@$(call each,$(filter-out integration,$(MODULES)),nice $(GO) test -count 1 -vet=off -timeout 14m ./...)
	nice $(GO) test -vet=off -timeout 14m $(PLAIN)

# The cache of results does not know what tests of other modules read and build here.
test-integration:
	cd integration && $(GO) test -count 1 -vet=off -timeout 12m ./...

# The long tests: crashes at the size of a deployment, then each fuzz target.
# go test fuzzes one target of one package at a time.
FUZZ := metrics:FuzzValue metrics:FuzzLabel pubsub:FuzzParseMetadata batcher:FuzzLimitTexts \
	aggregator:FuzzEvents aggregator:FuzzEventsGrouped pushed:FuzzPush \
	agentapi/internal/wire:FuzzRequest agentapi/internal/wire:FuzzMetadataWire \
	agentapi/internal/wire:FuzzRelayBatch fleet/internal/notification:FuzzDecode internal/decoded:FuzzBytes \
	bridge/internal/proxy:FuzzBridge bridge/internal/coder:FuzzPage
soak: servers ## the long tests: crashes at the size of a deployment, then fuzzing
	$(GO) test ./simulation -timeout 60m -seeds 10000
	cd integration && $(GO) test -tags soak -count 1 -timeout 150m -soak ./...
	cd deploy && $(GO) test -tags soak -count 1 -timeout 60m ./...
	@for target in $(FUZZ); do \
		echo "fuzzing $$target for $(FUZZTIME)"; \
		$(GO) test -run '^$$' -fuzz "^$${target#*:}$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x ./$${target%:*} || exit 1; \
	done

# Compares the service with what people would use in its place and with the limits
# of the machine, in under 20 minutes on two cores; BENCHFLAGS=-only=ingest,idle
# measures only those sections anew. It writes bench/RESULTS.md.
bench: bin/bench ## compare with what people would use in its place; writes bench/RESULTS.md
	./bin/bench $(BENCHFLAGS) run

# Compares it with real peers, as processes. Building them takes some minutes the
# first time.
bench-peers: bin/bench bin/peers/otelcol ## compare with Pushgateway, statsd_exporter and the OpenTelemetry Collector
	cd bench/peers && $(GO) build -trimpath -o ../../bin/peers/ \
		github.com/prometheus/pushgateway github.com/prometheus/statsd_exporter
	./bin/bench $(BENCHFLAGS) peers

.PHONY: bin/bench
bin/bench: build
	cd bench && $(GO) build -trimpath -ldflags "-X main.commit=$$(git describe --always --dirty --exclude '*')" -o ../bin/bench .

bin/peers/otelcol: bench/peers/otelcol.yaml bench/peers/go.mod
	cd bench/peers && $(GO) tool builder --config otelcol.yaml --skip-compilation
	cd bin/peers/otelcol-src && $(GO) build -trimpath -o ../otelcol .

# The benchmarks of each package.
microbench: servers ## the benchmarks of each package
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) $(PKGS)

# The database servers and the browser that tests start, from the distribution. Nothing is
# done if they are there; with apt, no cluster and no daemon is started.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
servers: bin/debian bin/axe ## what tests start: PostgreSQL, PgBouncer, Chromium, lintian, rpm and what documents call, installed; nginx, Caddy, Prometheus, axe-core
	@if PATH="$$PATH:/usr/sbin:$$(echo /usr/lib/postgresql/*/bin | tr ' ' :)" && \
		command -v initdb >/dev/null && command -v postgres >/dev/null && command -v pgbouncer >/dev/null && command -v chromium >/dev/null && \
		command -v curl >/dev/null && command -v openssl >/dev/null && command -v jq >/dev/null && \
		command -v lintian >/dev/null && command -v rpm >/dev/null && command -v rpmlint >/dev/null && command -v systemd-analyze >/dev/null; then exit 0; fi; \
	set -ex; \
	$(ROOT) mkdir -p /etc/postgresql-common; \
	test -e /etc/postgresql-common/createcluster.conf || \
		echo 'create_main_cluster = false' | $(ROOT) tee /etc/postgresql-common/createcluster.conf >/dev/null; \
	$(ROOT) apt-get update; \
	$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		-o Dpkg::Options::=--force-confold postgresql pgbouncer chromium curl openssl jq \
		lintian rpm rpmlint systemd procps

DEBIAN := nginx caddy prometheus

# The reverse proxies of docs/quickstart-coder.md, and a Prometheus: the files of the
# distribution's packages, not installed, as they would start with the machine.
bin/debian:
	rm -rf $@.tmp && mkdir -p $@.tmp
	cd $@.tmp && { apt-get download $(DEBIAN) || { $(ROOT) apt-get update && apt-get download $(DEBIAN); }; } && \
		for package in *.deb; do dpkg-deb -x "$$package" . || exit 1; done
	mv $@.tmp $@

# What looks at the status page for people who cannot see it, or only a part. npm checks what
# it fetches, the sum says that it is this one.
AXE := 4.14.1
bin/axe:
	rm -rf $@.tmp && mkdir -p $@.tmp
	command -v npm >/dev/null || { $(ROOT) apt-get update && $(ROOT) apt-get install -y --no-install-recommends npm; }
	cd $@.tmp && npm pack --silent axe-core@$(AXE) && tar -xzf axe-core-$(AXE).tgz --strip-components=1 package/axe.min.js package/LICENSE && \
		echo "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c  axe.min.js" | sha256sum --check --quiet && rm axe-core-$(AXE).tgz
	mv $@.tmp $@

check-format:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not formatted, run make fmt:"; gofmt -l $$(git ls-files '*.go'); exit 1; }

# proto has generated code only, which is not linted.
lint: check-format check-contract ## lint all modules and the wire contract
	@$(call each,. $(filter-out proto,$(MODULES)),$(TOOL) golangci-lint run ./...)
	@$(call each,$(LINKED),$(GO) mod tidy -diff)

# Nothing of the contract breaks, and the image has all of it.
check-contract:
	$(TOOL) buf lint
	$(TOOL) buf breaking --against proto/agentstats.binpb
	@$(TOOL) buf breaking proto/agentstats.binpb --against . >/dev/null || \
		{ echo "proto/agentstats.binpb lacks what was added to the contract: run make contract and commit"; exit 1; }

generate: ## generated Go, and what is generated into documents
	$(TOOL) buf generate
	cd examples/coderd && $(TOOL) buf generate
	$(GO) test ./cmd/agentstatsd -run 'TestConfigurationTables|TestPackagedConfiguration|TestFreshScrape|TestChart' -update
	$(GO) test ./metrics -run TestDocsMetrics -update
	$(GO) test ./web/console -run TestAnswers -update
	cd deploy && $(GO) test ./prometheus -run TestTableOfAlerts -update
	cd deploy && $(GO) run ./grafana
	cd deploy && $(GO) test ./helm -run 'TestRulesAndDashboards|TestGolden|TestPlainManifests' -update

# Not part of generate: a break of the contract would pass unseen. CONTRIBUTING.md says when.
contract: ## renew the image of the wire contract that breaking changes are measured against
	$(TOOL) buf build -o proto/agentstats.binpb

GENERATED := git ls-files -z proto examples/coderd/agentproto docs/configuration.md docs/metrics.md docs/runbooks/README.md cmd/agentstatsd/testdata/fresh.tsv web/console/testdata deploy/packages/etc deploy/grafana/dashboards deploy/helm deploy/kubernetes
check-generated: ## fail if generating changes a file
	@before="$$($(GENERATED) | xargs -0 sha256sum)"; \
	$(MAKE) --no-print-directory generate >/dev/null && \
	test "$$before" = "$$($(GENERATED) | xargs -0 sha256sum)" || \
	{ echo "generated files are not current: run make generate and commit"; git status --short; exit 1; }

fmt: ## format the code
	@$(call each,. $(MODULES),$(TOOL) golangci-lint fmt ./...)

# The tests of a package that integration needs import a module that the proxy does not have.
tidy: ## requirements of all modules, as they are used
	@$(call each,. $(MODULES),$(GO) mod tidy -e)

# Needs the vulnerability database, so it is not part of test. Of the modules that make a
# program. What those who link the client build with is theirs: its go.mod has the lowest
# versions.
vuln: ## look for known vulnerabilities
	@$(call each,. bench examples/coderd,$(TOOL) govulncheck ./...)

clean: ## remove what was built
	rm -rf bin dist
