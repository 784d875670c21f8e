# SPDX-License-Identifier: GPL-2.0-only
# Builds the kernel module for the running kernel, or for that of KDIR. Everything else is cargo's.

KDIR ?= /lib/modules/$(shell uname -r)/build

modules modules_install clean:
	$(MAKE) -C $(KDIR) M=$(CURDIR) $@

.PHONY: modules modules_install clean
