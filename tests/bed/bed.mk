# Targets of the test bed, for the Makefile to include.

.PHONY: linux test-linux test-linux-short bed

linux: ## get stock kernels, modules and busybox from Debian's packages
	$(GO) run ./tests/bed fetch

test-linux: ## boot stock Linux guests in the nested bed (BED=none: on this machine's own KVM; RUN=regex: some cases)
	$(GO) run ./tests/bed $(if $(RUN),-run '$(RUN)') $(if $(filter none,$(BED)),direct,test)

test-linux-short: ## a stock kernel on a cluster, with a disk, in a minute or two; a printed reason and no failure where Debian's packages cannot be had
	$(GO) build -o bin/bed ./tests/bed
	bin/bed -short -limit 8m -run '$(or $(RUN),^TestUpShort612$$)' test || \
	  { status=$$?; [ $$status = 77 ] && echo "stock Linux guests are not tested: see above"; }

bed: ## a cluster in the bed: KERNEL=… [INITRD=… ARGS=…] a guest's console on it, SCRIPT=… a script, else a shell; CMD='…' FILES='…': a command without a cluster
	$(GO) run ./tests/bed $(if $(CMD),-v sh '$(CMD)' $(FILES),$(if $(KERNEL),-kernel '$(KERNEL)') $(if $(INITRD),-initrd '$(INITRD)') \
	  $(if $(ARGS),-args '$(ARGS)') $(if $(SCRIPT),-script '$(SCRIPT)') -limit 8h guest)
