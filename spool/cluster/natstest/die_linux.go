package natstest

import (
	"os/exec"
	"syscall"
)

// dieWithTest has a process die with this one, also when a test runs out of time.
func dieWithTest(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
