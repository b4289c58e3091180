package figures

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// restic backs the same bytes up with restic, into a store of the same kind: the
// objects, in files of 16,384 each, first and again after one key in a hundred has
// changed; then it checks all data and restores.
func (v *vault) restic(b *testing.B) {
	var env []string
	use := func(store string) {
		repository := store
		env = os.Environ()
		if v.minio != nil {
			bucket := strings.TrimSuffix(store[strings.LastIndex(store, "/")+1:], "?tls=false")
			repository = "s3:" + v.minio.Endpoint() + "/" + bucket
			env = append(env, "AWS_ACCESS_KEY_ID="+v.minio.AccessKey, "AWS_SECRET_ACCESS_KEY="+v.minio.SecretKey)
		}
		env = append(env, "RESTIC_PASSWORD="+rand.Text(), "RESTIC_REPOSITORY="+repository)
	}
	folder := filepath.Join(v.dir, rand.Text())
	if err := os.Mkdir(folder, 0o700); err != nil {
		b.Fatal(err)
	}
	run := func(b *testing.B, args ...string) usage {
		cmd := exec.Command("restic", append([]string{"--no-cache", "--quiet"}, args...)...)
		cmd.Env, cmd.Dir = env, folder
		return measureCommand(b, cmd)
	}
	back := func(b *testing.B) usage { return run(b, "backup", ".") }
	v.each(b, "restic-first", func(b *testing.B) usage { // each time into a new repository
		b.StopTimer()
		use(v.store(b))
		run(b, "init")
		v.dump(b, folder)
		b.StartTimer()
		return back(b)
	})
	v.each(b, "restic-increment-1%", func(b *testing.B) usage {
		b.StopTimer()
		v.stores++
		v.change(b, 100)
		v.dump(b, folder)
		b.StartTimer()
		return back(b)
	})
	v.each(b, "restic-check", func(b *testing.B) usage { return run(b, "check", "--read-data") })
	v.each(b, "restic-restore", func(b *testing.B) usage {
		target := filepath.Join(v.dir, rand.Text())
		used := run(b, "restore", "latest", "--target", target)
		b.StopTimer()
		if err := os.RemoveAll(target); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		return used
	})
}

// dump writes the objects into files.
func (v *vault) dump(b *testing.B, folder string) {
	n := 0
	for part := range slices.Chunk(v.objects, 1<<14) {
		var all []byte
		for _, m := range part {
			all = append(all, m.Bytes...)
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%04d", n)), all, 0o600); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
