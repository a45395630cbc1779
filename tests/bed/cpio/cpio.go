// Package cpio writes archives in the "newc" format, which is what a Linux kernel unpacks as its initial RAM disk.
package cpio

import (
	"fmt"
	"io"
)

// Modes of files, as in stat(2).
const (
	Regular   = 0o100000
	Directory = 0o040000
	Symlink   = 0o120000
	CharDev   = 0o020000
)

// Writer writes an archive. The first error stays.
type Writer struct {
	w     io.Writer
	inode int
	err   error
}

// NewWriter makes a writer onto w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// File adds a regular file with the permission bits perm.
func (w *Writer) File(name string, perm int, data []byte) { w.entry(name, Regular|perm, 0, 0, data) }

// Dir adds a directory.
func (w *Writer) Dir(name string) { w.entry(name, Directory|0o755, 0, 0, nil) }

// Symlink adds a symbolic link.
func (w *Writer) Symlink(name, target string) { w.entry(name, Symlink|0o777, 0, 0, []byte(target)) }

// Char adds a character device.
func (w *Writer) Char(name string, perm, major, minor int) {
	w.entry(name, CharDev|perm, major, minor, nil)
}

// Close writes the trailer and returns the first error.
func (w *Writer) Close() error {
	w.entry("TRAILER!!!", 0, 0, 0, nil)
	return w.err
}

func (w *Writer) entry(name string, mode, major, minor int, data []byte) {
	w.inode++
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		w.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	w.write(pad([]byte(head)))
	w.write(data)
	w.write(make([]byte, -len(data)&3))
}

// pad fills up to a multiple of four bytes, to which the format aligns names and data.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

func (w *Writer) write(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}
