// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package cstor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// HostGraphRoot is the store of the system's podman.
const HostGraphRoot = "/var/lib/containers/storage"

const (
	// networkBackend is where podman remembers which network program it has
	// chosen, and netavark the one of today.
	networkBackend = "defaultNetworkBackend"
	netavark       = "netavark"

	// podmanTimeout bounds how long podman may take to look at itself.
	podmanTimeout = time.Minute
)

// prepareHostStore makes podman the first to touch its own store, if this is
// that and nobody has: podman 4 and older decides by what it finds there whether
// it is new on the system, and takes another network program if not. It
// returns what is to be done after the store was made.
//
// This is the only place where podman is run; a pull never writes to its store.
func (p *place) prepareHostStore(ctx context.Context, log *slog.Logger) (after func() error) {
	nothing := func() error { return nil }
	if p.graphRoot != HostGraphRoot {
		return nothing
	}
	podman, err := exec.LookPath("podman")
	if err != nil {
		// A podman that is installed later reads what one of today would have
		// written.
		return func() error { return writeNetworkBackend(p.graphRoot) }
	}
	ctx, cancel := context.WithTimeout(ctx, podmanTimeout)
	defer cancel()
	if err := exec.CommandContext(ctx, podman, "system", "info").Run(); err != nil {
		log.Warn("podman could not initialise its containers-storage", "path", p.graphRoot, "error", err)
	}
	return nothing
}

func writeNetworkBackend(graphRoot string) error {
	path := filepath.Join(graphRoot, networkBackend)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(netavark)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
