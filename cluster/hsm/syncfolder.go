package hsm

import (
	"errors"
	"os"
	"runtime"
)

// SyncFolder makes the names in a folder durable: of files made, renamed or removed there.
func SyncFolder(path string) error {
	if runtime.GOOS == "windows" { // refuses it; NTFS logs names itself
		return nil
	}
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
