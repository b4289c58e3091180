package open

import "testing"

func TestFolderOfAWindowsURL(t *testing.T) {
	for _, c := range []struct{ path, goos, want string }{
		{"/C:/snaps", "windows", "C:/snaps"},
		{"/C:", "windows", "C:"},
		{"/C:/snaps", "linux", "/C:/snaps"},
		{"/srv/snaps", "windows", "/srv/snaps"},
		{"/", "windows", "/"},
	} {
		if got := folderOf(c.path, c.goos); got != c.want {
			t.Errorf("%s on %s: %s, want %s", c.path, c.goos, got, c.want)
		}
	}
}
