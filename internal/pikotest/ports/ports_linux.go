package ports

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// Keep keeps a port that was free until Release is called.
func Keep() (*Port, error) {
	// A socket that is bound and does not listen: connections are refused, and with SO_REUSEADDR a listener can have the
	// port beside it, but only one that asks for this very port.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep a port: %w", os.NewSyscallError("socket", err))
	}
	err = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	if err == nil {
		err = os.NewSyscallError("bind", syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	}
	var at syscall.Sockaddr
	if err == nil {
		at, err = syscall.Getsockname(fd)
	}
	in, ok := at.(*syscall.SockaddrInet4)
	if err != nil || !ok {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("keep a port of 127.0.0.1: %w", err)
	}
	addr := &net.TCPAddr{IP: net.IP(in.Addr[:]), Port: in.Port}
	return &Port{Addr: addr.String(), release: func() { _ = syscall.Close(fd) }}, nil
}
