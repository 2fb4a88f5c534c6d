package postback

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// cpuTime is how much of a processor run takes. Others that share the machine cost
// it none, however long they keep it waiting.
func cpuTime(run func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	run()
	return threadTime() - began
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	const clock = 3 // CLOCK_THREAD_CPUTIME_ID
	var now syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&now)), 0); errno != 0 { //nolint:gosec // G103: the system fills it
		panic(errno)
	}
	return time.Duration(now.Nano())
}
