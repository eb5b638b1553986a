# Every target in one line: `make` lists them.
SHELL := /bin/bash
GO ?= go
BIN := bin
EMBED := cmd/proa/embedded
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w
STATIC := CGO_ENABLED=0
# The real kubectl says which Kubernetes it is of.
KUBECTL_VERSION := $(foreach v,gitVersion=v1.37.2 gitMajor=1 gitMinor=37 gitTreeState=clean,-X k8s.io/component-base/version.$(v))

# Tests that start whole clusters run one after the other, with the machine to themselves.
WHOLE := /test/(machine|sample|script)($$|/)
# What answers requests is tested on etcd, too.
API := ./apiserver/... ./server ./test/conformance

.PHONY: help build deps etcd up down test check sim bench fuzz images update clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

deps: ## install the Debian packages that building and testing need
	@tools/deps.sh

build: deps ## build bin/proa with its helpers inside
	@mkdir -p $(BIN)/helpers
	$(STATIC) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/helpers/proa-monitor ./cmd/proa-monitor
	CGO_ENABLED=1 $(GO) build -trimpath -tags seccomp,netgo,osusergo -ldflags '$(LDFLAGS) -linkmode external -extldflags -static' -o $(BIN)/helpers/proa-runner ./cmd/proa-runner
	$(STATIC) $(GO) build -trimpath -ldflags '$(LDFLAGS) $(KUBECTL_VERSION)' -o $(BIN)/helpers/proa-kubectl ./cmd/proa-kubectl
	@$(GO) run ./tools/pack $(EMBED) $(BIN)/helpers/proa-monitor $(BIN)/helpers/proa-runner $(BIN)/helpers/proa-kubectl
	$(STATIC) $(GO) build -trimpath -ldflags '$(LDFLAGS) -X main.version=$(VERSION)' -o $(BIN)/proa ./cmd/proa

etcd: ## build bin/etcd and bin/etcd35, which tests run on (modules of their own: test/etcd, test/etcd35)
	@mkdir -p $(BIN)
	for m in etcd etcd35; do (cd test/$$m && $(STATIC) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o ../../$(BIN)/$$m .) || exit 1; done

images: build ## make the sample application's images (no registry needed)
	@examples/dockercoins/build-images.sh $(BIN)/images

up: build images ## build, start a cluster, run the sample application, print its address
	$(BIN)/proa up
	$(BIN)/proa demo --images $(BIN)/images

down: ## stop the cluster, keeping its data
	$(BIN)/proa down

test: build images etcd ## every test: units, scenarios, simulation, real containers
	@tools/deps.sh test
	$(GO) vet ./...
	$(GO) test -timeout 20m $$($(GO) list ./... | grep -vE '$(WHOLE)')
	PROA_TEST_STORE=etcd $(GO) test -timeout 10m $(API)
	$(GO) test -timeout 20m -p 1 $$($(GO) list ./... | grep -E '$(WHOLE)')
	cd test/clients && $(GO) test -timeout 10m ./...

check: ## what a push must pass: vet, house rules, unit and scenario tests
	$(GO) vet ./...
	$(GO) test ./tools/... ./kind/... ./control/... ./sched/... ./view/... ./act/...

sim: ## simulate N seeds, or replay SEED
	$(GO) test ./test/sim -run TestSeeds -count=1 -timeout 60m -args -n=$(or $(N),100) $(if $(SEED),-seed=$(SEED))

bench: build etcd ## measure every budget and write docs/BENCHMARKS.md
	$(GO) run ./test/bench -proa $(BIN)/proa -out docs/BENCHMARKS.md

fuzz: ## run each fuzz target for FUZZTIME (10s)
	@grep -rH --include='*_test.go' '^func Fuzz' . | sed -E 's#/[^/]+\.go:func (Fuzz[A-Za-z0-9]*).*# \1#' | while read dir name; do echo "$$name in $$dir"; \
	  $(GO) test $$dir -run '^$$' -fuzz "^$$name\$$" -fuzztime $(or $(FUZZTIME),10s) -fuzzminimizetime 1s || exit 1; done

update: ## rewrite golden files and scenario expectations; the diff is the review
	$(GO) test ./kind/... ./control/... ./sched/... ./proxy/... ./node/pod/... -update

clean: ## remove what building made
	rm -rf $(BIN) $(EMBED)/*.zst
