# What is installed, and the Debian package made of the same.

PREFIX    ?= /usr/local
UNITDIR   ?= $(if $(filter /usr,$(PREFIX)),/lib/systemd/system,/etc/systemd/system)
SHARE      = $(DESTDIR)$(PREFIX)/share
DIST      ?= $(CURDIR)/dist
DEBROOT    = $(DIST)/deb
DEBVERSION = $(patsubst v%,%,$(shell git describe --tags --dirty=+dirty 2>/dev/null || echo 0.0.0+$$(git rev-parse --short HEAD 2>/dev/null || echo unknown)))
DEBARCH    = $(shell dpkg --print-architecture 2>/dev/null || echo amd64)

# What is packed must be built first; BUILD= packs BIN as it is.
BUILD     ?= build

install: $(BUILD) ## Install program, man pages, completions, systemd unit and docs below PREFIX=/usr/local
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/cellvisor
	$(BIN) manual --man $(DIST)/man
	install -d $(SHARE)/man/man8 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d $(SHARE)/doc/cellvisor
	install -m 644 $(DIST)/man/*.8 $(SHARE)/man/man8
	$(BIN) completion bash > $(SHARE)/bash-completion/completions/cellvisor
	$(BIN) completion zsh > $(SHARE)/zsh/site-functions/_cellvisor
	$(BIN) completion fish > $(SHARE)/fish/vendor_completions.d/cellvisor.fish
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/cellvisor.service > $(DESTDIR)$(UNITDIR)/cellvisor.service
	install -m 644 README.md CHANGELOG.md LICENSE docs/*.md docs/grafana.json $(SHARE)/doc/cellvisor

man: build ## Write man pages to dist/man, and docs/cli.md, from the commands
	$(BIN) manual --man $(DIST)/man --markdown docs/cli.md

deb: ## Build dist/cellvisor_VERSION_ARCH.deb; needs dpkg-deb
	rm -rf $(DEBROOT)
	$(MAKE) install PREFIX=/usr DESTDIR=$(DEBROOT)
	install -d -m 700 $(DEBROOT)/etc/cellvisor
	install -d $(DEBROOT)/DEBIAN
	printf 'Package: cellvisor\nVersion: %s\nArchitecture: %s\nMaintainer: Cellvisor authors <cellvisor@localhost>\nSection: admin\nPriority: optional\nInstalled-Size: %s\nHomepage: https://github.com/cellvisor/cellvisor\nDescription: virtual machines over cells of servers, with failures contained\n One large virtual machine over several Linux/KVM servers, that lives on when\n one of them dies: servers are grouped in cells, the unit of fault containment.\n' \
	  '$(DEBVERSION)' '$(DEBARCH)' "$$(du -sk --exclude=DEBIAN $(DEBROOT) | cut -f1)" > $(DEBROOT)/DEBIAN/control
	install -m 755 packaging/postinst packaging/prerm $(DEBROOT)/DEBIAN
	dpkg-deb -Zgzip --root-owner-group --build $(DEBROOT) $(DIST)/cellvisor_$(DEBVERSION)_$(DEBARCH).deb

pictures: build ## Draw the console's main screens from a real cluster into docs/pictures; needs tmux
	$(GO) run ./tests/pictures $(BIN) docs/pictures
