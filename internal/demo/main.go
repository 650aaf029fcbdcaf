// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Command demo shows a complete pull without a network, a registry or root: it
// makes a small bootable image, pulls it twice with the cfs-pull binary, and
// exports its boot files. As root it pulls into a fresh xfs with reflinks on a
// loop device and mounts what was pulled the way an initramfs does.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	binary := flag.String("binary", "cfs-pull", "the cfs-pull `program` to show")
	keep := flag.String("keep", "", "work in this new `directory` and leave it, instead of a temporary one")
	flag.Parse()
	if err := run(*binary, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(binary, keep string) (err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	dir := keep
	if keep == "" {
		if dir, err = os.MkdirTemp("", "cfs-pull-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.Mkdir(keep, 0o755); err != nil {
		return err
	}

	layout := filepath.Join(dir, "layout")
	say("A small bootable image as an OCI layout: %s", layout)
	if err := makeImage(layout); err != nil {
		return fmt.Errorf("make image: %w", err)
	}

	target, unmount, err := targetDirectory(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	repository, boot := filepath.Join(target, "composefs"), filepath.Join(target, "boot")
	if err := os.Mkdir(boot, 0o755); err != nil {
		return err
	}

	say("The first pull creates the repository and exports the boot files.")
	pull := []string{
		"--direct", "--repo", repository, "--init",
		// The file system need not have fs-verity, nor the machine a policy
		// of container signatures.
		"--allow-missing-verity", "--insecure-policy",
		"--export-boot", boot,
	}
	ref := "oci:" + layout + ":latest"
	if _, err := show(binary, append(pull, ref)...); err != nil {
		return err
	}
	say("The second pull has nothing to do; --json is the result for scripts.")
	out, err := show(binary, append(pull, "--json", ref)...)
	if err != nil {
		return err
	}
	var result struct {
		Changed   bool `json:"changed"`
		BootImage struct {
			ID string `json:"id"`
		} `json:"bootImage"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("read result: %w", err)
	}
	if result.Changed {
		return errors.New("the second pull says that something changed")
	}

	say("Boot files, the loader entry with the kernel argument of this image:")
	if err := showTree(boot); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		say("As root this would also mount the image: sudo make demo")
		return nil
	}
	return showMount(dir, repository, result.BootImage.ID)
}

// say prints a heading of the demonstration.
func say(format string, args ...any) { fmt.Printf("\n== "+format+"\n", args...) }

// show prints a command, runs it with its messages on the terminal, prints its
// result and returns it.
func show(program string, args ...string) ([]byte, error) {
	fmt.Printf("$ %s %s\n", filepath.Base(program), strings.Join(args, " "))
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	fmt.Printf("%s", out)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", filepath.Base(program), err)
	}
	return out, nil
}

// targetDirectory is where the repository goes: a fresh xfs for root, where
// one can be made, otherwise a plain directory.
func targetDirectory(dir string) (string, func() error, error) {
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		return "", nil, err
	}
	nothing := func() error { return nil }
	if os.Geteuid() != 0 {
		return target, nothing, nil
	}
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		say("No mkfs.xfs here (Debian: xfsprogs), so the repository goes on the file system of %s.", dir)
		return target, nothing, nil
	}
	image := filepath.Join(dir, "xfs.img")
	say("A file system with reflinks on a loop device.")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 1<<30)); err != nil {
		return "", nil, err
	}
	if _, err := show("mkfs.xfs", "-q", "-m", "reflink=1", image); err != nil {
		return "", nil, err
	}
	if _, err := show("mount", "-o", "loop", image, target); err != nil {
		say("No loop device here, so the repository goes on the file system of %s.", dir)
		return target, nothing, nil
	}
	return target, func() error { return unix.Unmount(target, 0) }, nil
}

// showTree prints the files below a directory, and the text of small ones.
func showTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Println(name)
		if filepath.Ext(name) != ".conf" {
			return nil
		}
		text, err := os.ReadFile(path)
		for line := range strings.Lines(string(text)) {
			fmt.Printf("    %s", line)
		}
		return err
	})
}

// showMount mounts the boot image as an initramfs does, EROFS for the metadata
// over the objects as a data-only layer, and looks around.
func showMount(dir, repository, id string) (err error) {
	metadata, root := filepath.Join(dir, "erofs"), filepath.Join(dir, "root")
	if err := errors.Join(os.Mkdir(metadata, 0o755), os.Mkdir(root, 0o755)); err != nil {
		return err
	}
	objects := filepath.Join(repository, "objects")
	image := filepath.Join(objects, id[:2], id[2:])
	options := "metacopy=on,redirect_dir=on,lowerdir=" + metadata + "::" + objects
	say("The boot image, mounted as an initramfs does:")
	fmt.Printf("# mount -t erofs -o ro %s %s\n", image, metadata)
	if err := unix.Mount(image, metadata, "erofs", unix.MS_RDONLY, ""); err != nil {
		// A kernel without file-backed EROFS mounts or without data-only
		// layers is no fault of the image.
		say("This kernel does not mount it (%v); Linux 6.12 and newer do.", err)
		return nil
	}
	defer func() { err = errors.Join(err, unix.Unmount(metadata, 0)) }()
	fmt.Printf("# mount -t overlay -o ro,%s composefs %s\n", options, root)
	if err := unix.Mount("composefs", root, "overlay", unix.MS_RDONLY, options); err != nil {
		say("This kernel does not mount it (%v); Linux 6.6 and newer do.", err)
		return nil
	}
	defer func() { err = errors.Join(err, unix.Unmount(root, 0)) }()
	if _, err := show("ls", "-ln", root, filepath.Join(root, "usr/bin")); err != nil {
		return err
	}
	_, err = show("cat", filepath.Join(root, "usr/lib/os-release"))
	return err
}
