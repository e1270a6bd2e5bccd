//go:build unix && (!linux || race)

package socket

import "syscall"

func read(fd uintptr, p []byte) (int, syscall.Errno) { return ordinary(syscall.Read, fd, p) }

func write(fd uintptr, p []byte) (int, syscall.Errno) { return ordinary(syscall.Write, fd, p) }
