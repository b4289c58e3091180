//go:build unix

package profile

import (
	"io/fs"
	"os"
	"syscall"
)

// chown gives f the owner of like, if the process may; otherwise f stays its own.
func chown(f *os.File, like fs.FileInfo) {
	if st, ok := like.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
}
