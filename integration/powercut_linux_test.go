package integration

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestPowerCut cuts the power again and again while callers send: the disk then
// forgets, whole or in part, what was not synced. The gateway starts by itself
// each time, and in the end v2 has each record whose caller was told 200.
// POWER_CUTS is how often.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	cuts, each := 20, 50
	if underRace() {
		cuts = 6
	}
	if value := os.Getenv("POWER_CUTS"); value != "" {
		var err error
		if cuts, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()                    //nolint:gosec // G404: a test
	chance := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // G404: a test
	disk := mountForgetful(t)
	v2 := startFickle(t)
	addr, socket := outsideSocket(t)
	g := &spooling{admin: freeAddr(t), dir: disk.dir + "/spool"}
	config := func(n int) string {
		mode := []string{"always", "on_failure"}[n%2]
		return socketCaddyfile(g.admin, spoolBlock(v2.url(), g.dir, "max_conns 64", "mode "+mode+"\n drain_rate 100000"))
	}
	callers := startTraffic(t, addr, 8, 1<<30, "")
	forgotten := 0
	for n := range cuts {
		p := startOn(t, config(n), socket)
		saysNoSecret(t, p)
		flapping := flap(v2, n/2%3)
		callers.await(t, 1+chance.IntN(2*each))
		if n%2 == 0 {
			disk.awaitSync()
		}
		forgotten += disk.cut(chance)
		kill(p)
		flapping()
		disk.mount(t)
	}
	v2.comeBack()
	saysNoSecret(t, startOn(t, config(0), socket))
	callers.await(t, each)
	callers.stop()
	v2.await(t, callers.acked...)
	g.awaitEmpty(t)
	if n := g.state(t).dead(); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	if forgotten == 0 {
		t.Error("the disk has never forgotten anything")
	}
	t.Logf("%d cuts (seed %d): %d records acknowledged, none missing; %d told 503, %d told nothing, %d unsynced changes forgotten",
		cuts, seed, len(callers.acked), callers.refused, callers.cut, forgotten)
}

// TestForgetfulDisk checks that the disk of TestPowerCut keeps what was synced,
// and forgets what was not.
func TestForgetfulDisk(t *testing.T) {
	t.Parallel()
	disk := mountForgetful(t)
	path := func(name string) string { return filepath.Join(disk.dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sync := func(name string) {
		t.Helper()
		f, err := os.Open(path(name))
		must(err)
		must(f.Sync())
		must(f.Close())
	}
	must(os.WriteFile(path("synced"), []byte("as it was"), 0o600))
	sync("synced")
	must(os.WriteFile(path("renamed"), []byte("by its old name"), 0o600))
	sync("renamed")
	must(os.WriteFile(path("deleted"), []byte("and back"), 0o600))
	sync("deleted")
	sync(".")
	must(os.WriteFile(path("synced"), []byte("overwritten"), 0o600))
	must(os.Rename(path("renamed"), path("moved")))
	must(os.Remove(path("deleted")))
	must(os.WriteFile(path("unknown"), []byte("its name was never synced"), 0o600))
	sync("unknown")
	must(os.Mkdir(path("dir"), 0o700))

	if n := disk.cut(nil); n != 6 { // a file cut to nothing, and written; four names
		t.Errorf("%d changes are forgotten", n)
	}
	if err := os.WriteFile(path("late"), nil, 0o600); err == nil {
		t.Error("the disk works without power")
	}
	disk.mount(t)
	found := map[string]string{}
	files, err := os.ReadDir(disk.dir)
	must(err)
	for _, f := range files {
		text, err := os.ReadFile(path(f.Name()))
		must(err)
		found[f.Name()] = string(text)
	}
	want := map[string]string{"synced": "as it was", "renamed": "by its old name", "deleted": "and back"}
	if !maps.Equal(found, want) {
		t.Errorf("got %v\nwant %v", found, want)
	}
}

// forgetful is a disk that loses at a power cut what was not synced. It syncs
// the content of a file and the names in a directory apart, as POSIX does.
type forgetful struct {
	dir string // where it is mounted

	mu     sync.Mutex
	off    bool          // the power is off: nothing works any more
	wanted chan struct{} // if not nil, the power goes when something is to be synced, and this is closed
	root   *forgetfulDir
	server *fuse.Server
}

// mountForgetful mounts an empty disk for the length of the test.
func mountForgetful(t *testing.T) *forgetful {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skip("a file system of the test's own takes /dev/fuse and root")
	}
	d := &forgetful{dir: t.TempDir()}
	d.root = &forgetfulDir{disk: d, synced: map[string]fs.InodeEmbedder{}}
	t.Cleanup(func() { d.unmount(t) })
	d.mount(t)
	return d
}

// mount gives the disk power, with what it has kept.
func (d *forgetful) mount(t *testing.T) {
	t.Helper()
	d.unmount(t)
	d.off = false
	var err error
	d.server, err = fs.Mount(d.dir, d.root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "forgetful", Name: "forgetful", MaxWrite: 1 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (d *forgetful) unmount(t *testing.T) {
	t.Helper()
	if d.server == nil {
		return
	}
	if err := syscall.Unmount(d.dir, syscall.MNT_DETACH); err != nil {
		t.Error(err)
	}
	d.server.Wait()
	d.server = nil
}

// cut cuts the power. By chance the disk has kept all, nothing, or some of what
// was not synced; without a chance, nothing. It returns how many changes it has
// forgotten.
func (d *forgetful) cut(chance *rand.Rand) (forgotten int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off, d.wanted = true, nil
	d.root, forgotten = d.root.remains(chance)
	return forgotten
}

// awaitSync waits until something is about to be synced: a cut is never worse
// than then. It gives up after a moment, since there may be nothing to sync.
func (d *forgetful) awaitSync() {
	wanted := make(chan struct{})
	d.mu.Lock()
	d.wanted = wanted
	d.mu.Unlock()
	select {
	case <-wanted:
	case <-time.After(100 * time.Millisecond):
	}
}

// lock is taken for each operation. It fails without power.
func (d *forgetful) lock() syscall.Errno {
	d.mu.Lock()
	if d.off {
		d.mu.Unlock()
		return syscall.EIO
	}
	return 0
}

// lockSync is lock for what syncs.
func (d *forgetful) lockSync() syscall.Errno {
	if errno := d.lock(); errno != 0 || d.wanted == nil {
		return errno
	}
	d.off = true
	close(d.wanted)
	d.wanted = nil
	d.mu.Unlock()
	return syscall.EIO
}

// forgetfulDir is a directory.
type forgetfulDir struct {
	fs.Inode
	disk     *forgetful
	synced   map[string]fs.InodeEmbedder
	unsynced []nameChange // in order
}

// nameChange is a name that has come, one that has gone, or both at once.
type nameChange struct {
	come string
	node fs.InodeEmbedder // nil if none has come
	gone string
}

// remains is the directory after a power cut. A file system with a journal
// forgets changes of names from one on.
func (n *forgetfulDir) remains(chance *rand.Rand) (left *forgetfulDir, forgotten int) {
	left = &forgetfulDir{disk: n.disk, synced: map[string]fs.InodeEmbedder{}}
	kept := 0
	if chance != nil {
		kept = chance.IntN(len(n.unsynced) + 1)
	}
	forgotten = len(n.unsynced) - kept
	for name, node := range n.after(kept) {
		lost := 0
		switch node := node.(type) {
		case *forgetfulDir:
			left.synced[name], lost = node.remains(chance)
		case *forgetfulFile:
			left.synced[name], lost = node.remains(chance)
		}
		forgotten += lost
	}
	return left, forgotten
}

// after is what the directory has with the first unsynced changes.
func (n *forgetfulDir) after(changes int) map[string]fs.InodeEmbedder {
	names := maps.Clone(n.synced)
	for _, change := range n.unsynced[:changes] {
		delete(names, change.gone)
		if change.node != nil {
			names[change.come] = change.node
		}
	}
	return names
}

// OnAdd shows the kernel what the directory had before.
func (n *forgetfulDir) OnAdd(ctx context.Context) {
	for name, node := range n.synced {
		mode := uint32(syscall.S_IFREG)
		if _, ok := node.(*forgetfulDir); ok {
			mode = syscall.S_IFDIR
		}
		n.AddChild(name, n.NewPersistentInode(ctx, node, fs.StableAttr{Mode: mode}), true)
	}
}

// Getattr gives the owner the directory.
func (n *forgetfulDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFDIR | 0o700
	return 0
}

// Setattr takes every mode and owner, and keeps none.
func (n *forgetfulDir) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.Getattr(ctx, f, out)
}

// Create makes a file.
func (n *forgetfulDir) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.lock(); errno != 0 {
		return nil, nil, 0, errno
	}
	defer n.disk.mu.Unlock()
	file := &forgetfulFile{disk: n.disk}
	n.unsynced = append(n.unsynced, nameChange{come: name, node: file})
	out.Mode = syscall.S_IFREG | 0o600
	return n.NewPersistentInode(ctx, file, fs.StableAttr{Mode: syscall.S_IFREG}), nil, 0, 0
}

// Mkdir makes a directory.
func (n *forgetfulDir) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.disk.lock(); errno != 0 {
		return nil, errno
	}
	defer n.disk.mu.Unlock()
	dir := &forgetfulDir{disk: n.disk, synced: map[string]fs.InodeEmbedder{}}
	n.unsynced = append(n.unsynced, nameChange{come: name, node: dir})
	out.Mode = syscall.S_IFDIR | 0o700
	return n.NewPersistentInode(ctx, dir, fs.StableAttr{Mode: syscall.S_IFDIR}), 0
}

// Unlink deletes a file.
func (n *forgetfulDir) Unlink(_ context.Context, name string) syscall.Errno { return n.remove(name) }

// Rmdir deletes a directory.
func (n *forgetfulDir) Rmdir(_ context.Context, name string) syscall.Errno {
	if child := n.GetChild(name); child != nil && len(child.Children()) > 0 {
		return syscall.ENOTEMPTY
	}
	return n.remove(name)
}

func (n *forgetfulDir) remove(name string) syscall.Errno {
	if errno := n.disk.lock(); errno != 0 {
		return errno
	}
	defer n.disk.mu.Unlock()
	n.unsynced = append(n.unsynced, nameChange{gone: name})
	return 0
}

// Rename renames within the directory. As on a file system with a journal, it
// happens wholly or not at all.
func (n *forgetfulDir) Rename(_ context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if to.EmbeddedInode() != n.EmbeddedInode() || flags != 0 {
		return syscall.EXDEV
	}
	if errno := n.disk.lock(); errno != 0 {
		return errno
	}
	defer n.disk.mu.Unlock()
	node := n.after(len(n.unsynced))[name]
	n.unsynced = append(n.unsynced, nameChange{newName, node, name})
	return 0
}

// Fsync syncs the names.
func (n *forgetfulDir) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if errno := n.disk.lockSync(); errno != 0 {
		return errno
	}
	defer n.disk.mu.Unlock()
	n.synced, n.unsynced = n.after(len(n.unsynced)), nil
	return 0
}

// forgetfulFile is a file.
type forgetfulFile struct {
	fs.Inode
	disk        *forgetful
	now, synced []byte
	unsynced    []fileChange // in order
}

// fileChange is what was written at a place; without data, it is a new size.
type fileChange struct {
	at   int
	data []byte
}

// apply makes a change.
func (c *fileChange) apply(content []byte) []byte {
	if end := c.at + len(c.data); end > len(content) {
		content = append(content, make([]byte, end-len(content))...)
	} else if c.data == nil {
		content = content[:c.at:c.at]
	}
	copy(content[c.at:], c.data)
	return content
}

// sector is what a disk writes wholly or not at all.
const sector = 512

// remains is the file after a power cut.
func (n *forgetfulFile) remains(chance *rand.Rand) (left *forgetfulFile, forgotten int) {
	content := bytes.Clone(n.synced)
	all, some := false, false
	if chance != nil {
		all, some = chance.IntN(3) == 0, chance.IntN(2) == 0
	}
	for _, c := range n.unsynced {
		switch {
		case all:
			content = c.apply(content)
		case some && c.data == nil && chance.IntN(2) == 0:
			content = c.apply(content)
		case some && c.data != nil:
			forgotten++
			for from := 0; from < len(c.data); {
				to := min(len(c.data), (c.at+from)/sector*sector+sector-c.at)
				if chance.IntN(2) == 0 {
					part := fileChange{c.at + from, c.data[from:to]}
					content = part.apply(content)
				}
				from = to
			}
		default:
			forgotten++
		}
	}
	return &forgetfulFile{disk: n.disk, now: bytes.Clone(content), synced: content}, forgotten
}

// Open lets anybody open the file.
func (n *forgetfulFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

// Getattr says how long the file is.
func (n *forgetfulFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if errno := n.disk.lock(); errno != 0 {
		return errno
	}
	defer n.disk.mu.Unlock()
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(len(n.now))
	return 0
}

// Setattr changes the size. It takes every mode and owner, and keeps none.
func (n *forgetfulFile) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if errno := n.change(fileChange{at: int(size)}); errno != 0 { //nolint:gosec // G115: a test's file is small
			return errno
		}
	}
	return n.Getattr(ctx, f, out)
}

// Allocate is refused, as file systems do that cannot.
func (n *forgetfulFile) Allocate(context.Context, fs.FileHandle, uint64, uint64, uint32) syscall.Errno {
	return syscall.ENOTSUP
}

// Read reads what was written, synced or not.
func (n *forgetfulFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, from int64) (fuse.ReadResult, syscall.Errno) {
	if errno := n.disk.lock(); errno != 0 {
		return nil, errno
	}
	defer n.disk.mu.Unlock()
	at := min(int(from), len(n.now))
	return fuse.ReadResultData(dest[:copy(dest, n.now[at:])]), 0
}

// Write writes.
func (n *forgetfulFile) Write(_ context.Context, _ fs.FileHandle, data []byte, at int64) (uint32, syscall.Errno) {
	if errno := n.change(fileChange{int(at), bytes.Clone(data)}); errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0 //nolint:gosec // G115: at most MaxWrite
}

func (n *forgetfulFile) change(c fileChange) syscall.Errno {
	if errno := n.disk.lock(); errno != 0 {
		return errno
	}
	defer n.disk.mu.Unlock()
	n.now = c.apply(n.now)
	n.unsynced = append(n.unsynced, c)
	return 0
}

// Fsync syncs the content.
func (n *forgetfulFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if errno := n.disk.lockSync(); errno != 0 {
		return errno
	}
	defer n.disk.mu.Unlock()
	for _, c := range n.unsynced {
		n.synced = c.apply(n.synced)
	}
	n.unsynced = nil
	return 0
}

// Interface guards
var (
	_ fs.NodeOnAdder   = (*forgetfulDir)(nil)
	_ fs.NodeGetattrer = (*forgetfulDir)(nil)
	_ fs.NodeSetattrer = (*forgetfulDir)(nil)
	_ fs.NodeCreater   = (*forgetfulDir)(nil)
	_ fs.NodeMkdirer   = (*forgetfulDir)(nil)
	_ fs.NodeUnlinker  = (*forgetfulDir)(nil)
	_ fs.NodeRmdirer   = (*forgetfulDir)(nil)
	_ fs.NodeRenamer   = (*forgetfulDir)(nil)
	_ fs.NodeFsyncer   = (*forgetfulDir)(nil)
	_ fs.NodeOpener    = (*forgetfulFile)(nil)
	_ fs.NodeGetattrer = (*forgetfulFile)(nil)
	_ fs.NodeSetattrer = (*forgetfulFile)(nil)
	_ fs.NodeAllocater = (*forgetfulFile)(nil)
	_ fs.NodeReader    = (*forgetfulFile)(nil)
	_ fs.NodeWriter    = (*forgetfulFile)(nil)
	_ fs.NodeFsyncer   = (*forgetfulFile)(nil)
)
