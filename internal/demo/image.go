// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfs-pull/cfs-pull/internal/ocilayout"
)

// kernelVersion names the modules directory of the image.
const kernelVersion = "6.12.0-demo"

// built is the time of every file: the same image each time.
var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// makeImage writes an image with the parts that a pull of an operating system
// needs: a /usr tree, a kernel with its initramfs where bootc expects them, the
// /boot and /sysroot that a boot image empties, a second layer that changes the
// first one. The kernel is a text file; nothing here boots.
func makeImage(layout string) error {
	w, err := ocilayout.Create(layout)
	if err != nil {
		return err
	}
	modules := "usr/lib/modules/" + kernelVersion
	err = w.AddLayer(ocilayout.Gzip, func(tw *tar.Writer) error {
		return writeEntries(tw,
			dir("boot"), dir("etc"), dir("run"), dir("sysroot"), dir("tmp", 0o1777), dir("usr"), dir("usr/bin"),
			dir("usr/lib"), dir("usr/lib/modules"), dir(modules), dir("var"),
			file("boot/notes", "In the plain image only: a boot image has an empty /boot.\n"),
			file("etc/motd", "Not yet.\n"),
			file("usr/lib/os-release", "ID=demo\nNAME=\"Demo OS\"\nVERSION_ID=1\n"),
			link("etc/os-release", "../usr/lib/os-release"), link("bin", "usr/bin"), link("lib", "usr/lib"),
			file(modules+"/vmlinuz", string(bytes.Repeat([]byte("kernel "), 1<<16))),
			file(modules+"/initramfs.img", string(bytes.Repeat([]byte("initramfs "), 1<<16))),
			file("usr/lib/large", string(bytes.Repeat([]byte("many kilobytes\n"), 1<<17))),
			program("usr/bin/hello"), hardLink("usr/bin/hello-again", "usr/bin/hello"),
			file("usr/bin/removed-above", "gone\n"),
		)
	})
	if err != nil {
		return err
	}
	err = w.AddLayer(ocilayout.Zstd, func(tw *tar.Writer) error {
		return writeEntries(tw,
			dir("etc"), file("etc/motd", "Welcome to a composefs root.\n"),
			dir("usr"), dir("usr/bin"), file("usr/bin/.wh.removed-above", ""),
		)
	})
	if err != nil {
		return err
	}
	return w.Finish("latest", v1.ImageConfig{
		Cmd:    []string{"/usr/bin/hello"},
		Labels: map[string]string{"containers.bootc": "1", v1.AnnotationVersion: "1"},
	})
}

// entry is a tar member with its content.
type entry struct {
	header  tar.Header
	content string
}

func writeEntries(tw *tar.Writer, entries ...entry) error {
	for _, e := range entries {
		e.header.ModTime = built
		e.header.Size = int64(len(e.content))
		if err := tw.WriteHeader(&e.header); err != nil {
			return fmt.Errorf("write %s: %w", e.header.Name, err)
		}
		if _, err := tw.Write([]byte(e.content)); err != nil {
			return fmt.Errorf("write %s: %w", e.header.Name, err)
		}
	}
	return nil
}

func dir(name string, mode ...int64) entry {
	h := tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
	if len(mode) > 0 {
		h.Mode = mode[0]
	}
	return entry{header: h}
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content}
}

func program(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}, "#!/bin/sh\n" +
		"# Longer than 64 bytes, so that it is an object of its own.\necho hello from composefs\n"}
}

func link(name, target string) entry {
	return entry{header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardLink(name, target string) entry {
	return entry{header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}}
}
