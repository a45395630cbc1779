# `make help` lists the targets. CI calls the same ones.

GO         ?= go
BIN        := bin/cellvisor
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
LDFLAGS    := -s -w -X main.version=$(VERSION) -X github.com/cellvisor/cellvisor/server.Version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROTOC_GEN_GO      := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
TOOLS      := $(CURDIR)/bin/tools

# Tests that need KVM skip themselves where it cannot be opened; where it can, a skip is a failure.
export REQUIRE_KVM ?= $(shell { : <>/dev/kvm; } 2>/dev/null && echo 1)

# The race detector costs a factor of five to ten. Pure packages start no goroutine, so it has nothing to find in them.
PURE       := ./ident/... ./wire/... ./cells/... ./mem/... ./balancer/... ./recovery/... ./monitor/...
SEEDS      ?= 1..2000
CANARY_SEEDS ?= 1..2000
DRILL_SEEDS ?= 1..1000
FUZZTIME   ?= 30s
ROUNDS     ?= 100

.DEFAULT_GOAL := help
.PHONY: soak borrow joins serves drains shares bench-balance help build test test-pure test-race test-plain e2e chaos failover journal netcut demo bench sim drills drills-sim fuzz lint fmt generate payloads install man deb pictures campaign clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build bin/cellvisor, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/cellvisor

test: test-pure test-race test-plain ## Run all tests that end within ten minutes on two cores

test-pure: # the decision cores and the simulator, without the race detector
	$(GO) test -timeout 8m $(PURE) ./sim/...

RACY = $$($(GO) list ./... | grep -v -E '/(ident|wire|cells|mem|balancer|recovery|monitor|sim|tests|payload)(/|$$)')
test-race: # whatever has goroutines, with it
	$(GO) test -race -timeout 8m $(RACY)

test-plain: # guests and real clusters: the race detector would distort their time
	$(GO) test -timeout 9m ./payload/... ./tests/...

e2e: build ## Run the end-to-end scripts on real clusters, one at a time
	CELLVISOR_BIN=$(CURDIR)/$(BIN) LONG_SCRIPTS=1 $(GO) test -count=1 -v -timeout 30m -parallel 1 ./tests/...

chaos: build ## Kill and stop servers at random, ROUNDS=100 times, with VMs inside and across cells
	CELLVISOR_BIN=$(CURDIR)/$(BIN) CHAOS_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 120m -run TestChaos ./tests

joins: build ## Send vCPUs to servers without a part of their VM, ROUNDS=100 times, and kill a server at a random moment of each
	CELLVISOR_BIN=$(CURDIR)/$(BIN) JOIN_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 60m -run TestJoinAndLoss ./tests

failover: build ## Kill, stop and restart the cells of a protected VM, ROUNDS=100 times, two at once and in each stage of a recovery: its output must stay unbroken
	CELLVISOR_BIN=$(CURDIR)/$(BIN) FAILOVER_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 120m -run TestFailover ./tests

serves: build ## Kill 60 serve processes, one after the other, under load: no guest may show a gap above 200 ms
	CELLVISOR_BIN=$(CURDIR)/$(BIN) SERVEKILL_ROUNDS=60 $(GO) test -count=1 -v -timeout 30m -run TestServesAreKilledUnderLoad ./tests

drains: build ## Drain, kill and restore a cell with ten VMs, ROUNDS=100 times, with something killed at a random moment of each
	CELLVISOR_BIN=$(CURDIR)/$(BIN) DRAIN_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 120m -run TestDrainRounds ./tests

netcut: build ## Split a cluster that lives in network namespaces, ROUNDS=100 times (needs root)
	CELLVISOR_BIN=$(CURDIR)/$(BIN) NETCUT_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 120m -run 'TestNetworkCut|TestPagePlaneCut' ./tests

journal: build ## As failover, with a journal on a mirrored disk that is verified all the time, and mirrors that are damaged
	CELLVISOR_BIN=$(CURDIR)/$(BIN) JOURNAL_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 120m -run TestJournal ./tests

CAMPAIGN := $(CURDIR)/bin/campaign.jsonl
# $(call step,NAME,SETTINGS,TEST): one step of a campaign. It does not end the campaign when it fails, but is named at the end.
step = @echo "== $(1)"; cd tests && env CELLVISOR_BIN=$(CURDIR)/$(BIN) CAMPAIGN_FILE=$(CAMPAIGN) CAMPAIGN_STEP='$(1)' $(2) \
	$(CURDIR)/bin/tests.test -test.count=1 -test.v -test.timeout 60m -test.run '$(3)' >$(CURDIR)/bin/campaign-$(subst $(space),-,$(1)).log 2>&1 || echo '$(1): see bin/campaign-$(subst $(space),-,$(1)).log' | tee -a $(CAMPAIGN).failed
space := $(subst ,, )

campaign: build ## All proofs of survival one after the other, ROUNDS=100 of each, and one table: 25 minutes on two quiet cores
	$(GO) test -c -o bin/tests.test ./tests
	@rm -f $(CAMPAIGN) $(CAMPAIGN).failed
	$(call step,cells are killed,FAILOVER_FAULTS=cell FAILOVER_ROUNDS=$(ROUNDS),TestFailover$$)
	$(call step,cells are killed under a journal,JOURNAL_FAULTS=cell JOURNAL_ROUNDS=$(ROUNDS),TestJournal$$)
	$(call step,cells are stopped,FAILOVER_FAULTS=stop FAILOVER_ROUNDS=$(ROUNDS),TestFailover$$)
	$(call step,kills during recovery,JOURNAL_FAULTS=midkill JOURNAL_ROUNDS=$(ROUNDS),TestJournalTwoMirrors$$)
	$(call step,networks are cut,NETCUT_ROUNDS=$$(( ($(ROUNDS)+1)/2 )),TestNetworkCut$$)
	$(call step,serve processes are killed,SERVEKILL_ROUNDS=60,TestServesAreKilledUnderLoad$$)
	$(call step,guests crash and lose their home,ONDISK_ROUNDS=10,TestCrashesAndLossesWithADisk$$)
	@cd tests && CAMPAIGN_FILE=$(CAMPAIGN) $(CURDIR)/bin/tests.test -test.count=1 -test.run 'TestCampaignTable$$' || echo 'a bound was not kept' >>$(CAMPAIGN).failed
	@if [ -e $(CAMPAIGN).failed ]; then cat $(CAMPAIGN).failed; exit 1; fi

demo: build ## See a cell die and what that does to whom
	$(BIN) demo

BENCH ?= fault gang migrate locality borrow balance checkpoint failover reboot console
bench: build ## Run all benchmarks, each figure beside its floor or an alternative; BENCH="gang borrow": only these
	@trap "exit 130" INT; failed=; for b in $(BENCH); do echo "== bench $$b"; $(BIN) bench $$b || failed="$$failed $$b"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

shares: build ## Twenty VMs of mixed weights on two slots, ten minutes, while others come, go, move and are killed
	CELLVISOR_BIN=$(CURDIR)/$(BIN) SHARES_SECONDS=600 $(GO) test -count=1 -v -timeout 30m -run TestShares ./tests

soak: build ## Whatever an operator may do to VMs, several things at once, for ten minutes: without kills, with kills, then with all kinds of faults (needs root); then ROUNDS=100 faults in the middle of something
	CELLVISOR_BIN=$(CURDIR)/$(BIN) SOAK_SECONDS=150 SOAK_KILLS=0 $(GO) test -count=1 -v -timeout 15m -run TestSoak ./tests
	CELLVISOR_BIN=$(CURDIR)/$(BIN) SOAK_SECONDS=200 $(GO) test -count=1 -v -timeout 15m -run TestSoak ./tests
	CELLVISOR_BIN=$(CURDIR)/$(BIN) SOAK_SECONDS=250 SOAK_FAULTS=all SOAK_KILLS=10 $(GO) test -count=1 -v -timeout 15m -run TestSoak ./tests
	CELLVISOR_BIN=$(CURDIR)/$(BIN) MIDOP_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 30m -run TestFaultsInTheMiddle ./tests

borrow: build ## A VM that borrows memory from another cell: gives back on demand, is lost with its lender; others never notice
	BORROW_SCRIPT=1 CELLVISOR_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -v -timeout 20m -run 'TestScripts/borrow' ./tests

bench-balance: build ## Compare the balancer with Ganeti's hbal (package ganeti-htools-3.0), and measure it on large clusters
	$(BIN) bench balance

sim: build ## Run the simulator over SEEDS=1..2000, and check that every planted bug is found
	$(BIN) sim --seeds $(SEEDS)
	$(BIN) sim --canaries --seeds $(CANARY_SEEDS)
	LONG_WORLDS=1 $(GO) test -count=1 -timeout 20m -run 'TestWorlds/.*crash' ./sim/explore

drills-sim: build ## Run every ready drill on the simulator over DRILL_SEEDS=1..1000
	for d in $$($(BIN) drill ls -o name); do $(BIN) drill run $$d --sim --seeds $(DRILL_SEEDS) || exit 1; done

drills: build ## Run every ready drill on a real cluster of its own
	for d in $$($(BIN) drill ls -o name); do $(BIN) drill run $$d --up --quiet --patience 4 || exit 1; done

fuzz: ## Run every fuzz target for FUZZTIME=30s
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done

lint: ## Check formatting, vet, staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted (make fmt): $$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

fmt: ## Format all Go files
	gofmt -w $$(git ls-files '*.go')

generate: ## Rebuild generated code from api/cellvisor.proto; needs protoc
	GOBIN=$(TOOLS) $(GO) install $(PROTOC_GEN_GO)
	GOBIN=$(TOOLS) $(GO) install $(PROTOC_GEN_GO_GRPC)
	PATH=$(TOOLS):$$PATH $(GO) generate ./api

payloads: ## Rebuild the built-in guest programs from C; needs gcc
	$(MAKE) -C payload

include tests/bed/bed.mk

include packaging/package.mk

clean: ## Remove what was built
	rm -rf bin dist
