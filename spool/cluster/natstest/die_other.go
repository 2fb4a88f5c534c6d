//go:build !linux

package natstest

import "os/exec"

func dieWithTest(*exec.Cmd) {}
