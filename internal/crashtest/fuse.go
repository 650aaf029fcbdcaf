// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package crashtest

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// diskFile is the name of the file that is the disk.
const diskFile = "disk"

// Server is a file system with one file, the content of a Disk. The kernel
// passes on what a loop device does with it: writes as they come, because there
// is no cache between, and flushes as fsync.
type Server struct {
	// Path is the file.
	Path string

	current atomic.Pointer[Disk]
	server  *fuse.Server
}

// Serve mounts a Server at a directory. It needs root.
func Serve(dir string, size int64) (*Server, error) {
	s := &Server{Path: filepath.Join(dir, diskFile)}
	never := time.Duration(0)
	var err error
	s.server, err = fs.Mount(dir, &diskDir{server: s, size: size}, &fs.Options{
		EntryTimeout: &never, AttrTimeout: &never,
		MountOptions: fuse.MountOptions{
			FsName: "crashtest", Name: "crashtest", DirectMountStrict: true, MaxWrite: 256 << 10, DisableXAttrs: true,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("mount the disk's file system: %w", err)
	}
	return s, nil
}

// Insert makes a disk the one that is opened from now on. Who has another one
// open keeps it.
func (s *Server) Insert(d *Disk) { s.current.Store(d) }

// Close unmounts.
func (s *Server) Close() error { return s.server.Unmount() }

// diskDir is the root.
type diskDir struct {
	fs.Inode
	server *Server
	size   int64
}

var _ = (fs.NodeOnAdder)((*diskDir)(nil))

// OnAdd implements fs.NodeOnAdder.
func (r *diskDir) OnAdd(ctx context.Context) {
	node := r.NewPersistentInode(ctx, &diskNode{server: r.server, size: r.size}, fs.StableAttr{Mode: unix.S_IFREG})
	r.AddChild(diskFile, node, false)
}

// diskNode is the file.
type diskNode struct {
	fs.Inode
	server *Server
	size   int64
}

var (
	_ = (fs.NodeGetattrer)((*diskNode)(nil))
	_ = (fs.NodeSetattrer)((*diskNode)(nil))
	_ = (fs.NodeOpener)((*diskNode)(nil))
)

// Getattr implements fs.NodeGetattrer.
func (n *diskNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = unix.S_IFREG|0o600, uint64(n.size)
	out.Blocks = out.Size / 512
	return 0
}

// Setattr implements fs.NodeSetattrer; times do not matter.
func (n *diskNode) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.Getattr(ctx, f, out)
}

// Open implements fs.NodeOpener.
func (n *diskNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	disk := n.server.current.Load()
	if disk == nil {
		return nil, 0, unix.ENOMEDIUM
	}
	return &diskHandle{disk}, fuse.FOPEN_DIRECT_IO, 0
}

// diskHandle is an open disk.
type diskHandle struct{ disk *Disk }

var (
	_ = (fs.FileReader)((*diskHandle)(nil))
	_ = (fs.FileWriter)((*diskHandle)(nil))
	_ = (fs.FileFsyncer)((*diskHandle)(nil))
	_ = (fs.FileAllocater)((*diskHandle)(nil))
)

// Read implements fs.FileReader.
func (h *diskHandle) Read(_ context.Context, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, _ := h.disk.ReadAt(p, off) // the end is no error here
	return fuse.ReadResultData(p[:n]), 0
}

// Write implements fs.FileWriter.
func (h *diskHandle) Write(_ context.Context, p []byte, off int64) (uint32, syscall.Errno) {
	n, err := h.disk.WriteAt(p, off)
	if err != nil {
		return 0, unix.EIO
	}
	return uint32(n), 0
}

// Fsync implements fs.FileFsyncer.
func (h *diskHandle) Fsync(context.Context, uint32) syscall.Errno {
	h.disk.Flush()
	return 0
}

// Allocate implements fs.FileAllocater: discards come as holes.
func (h *diskHandle) Allocate(_ context.Context, off, size uint64, mode uint32) syscall.Errno {
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return unix.EOPNOTSUPP
	}
	if err := h.disk.Discard(int64(off), int64(size)); err != nil {
		return unix.EIO
	}
	return 0
}
