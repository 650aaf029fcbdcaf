// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

// Command enable enables fs-verity with SHA-512 on the files that it is given
// and prints the digests that the kernel measures.
package main

import (
	"fmt"
	"os"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

func main() {
	for _, path := range os.Args[1:] {
		if err := enable(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func enable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // read-only
	if err := fsverity.Enable(f, fsverity.SHA512); err != nil {
		return err
	}
	digest, err := fsverity.Measure(f, fsverity.SHA512)
	if err != nil {
		return err
	}
	_, err = fmt.Println(digest, path)
	return err
}
