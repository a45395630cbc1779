# Targets of the test bed, for the Makefile to include.

.PHONY: linux test-linux test-linux-short bed

linux: ## get stock kernels, modules and busybox from Debian's packages
	$(GO) run ./tests/bed fetch

test-linux: ## boot stock Linux guests in the nested bed (BED=none: on this machine's own KVM; RUN=regex: some cases)
	$(GO) run ./tests/bed $(if $(RUN),-run '$(RUN)') $(if $(filter none,$(BED)),direct,test)

test-linux-short: ## the short ones
	$(GO) run ./tests/bed -short test

bed: ## run CMD='...' in the outer machine of the bed, with FILES='...' in its /
	$(GO) run ./tests/bed -v sh '$(CMD)' $(FILES)
