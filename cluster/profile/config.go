package profile

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// EnvConfig names the environment variable that holds the path of the user's
// configuration file.
const EnvConfig = "HSMBACKUP_CONFIG"

// ErrUnknown: no cluster of that name is configured.
var ErrUnknown = errors.New("unknown cluster")

// Config is the user's configuration file: $HSMBACKUP_CONFIG, otherwise
// hsmbackup/config.yaml in the user's configuration folder ($XDG_CONFIG_HOME,
// ~/.config).
type Config struct {
	// Clusters maps a name to the path of a profile, or of the folder that
	// holds it; relative to the configuration file's folder.
	Clusters map[string]string `yaml:"clusters"`
}

// ConfigPath returns where the user's configuration file is or would be.
func ConfigPath() (string, error) {
	if path := os.Getenv(EnvConfig); path != "" {
		return path, nil
	}
	folder, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration folder: %w; set %s", err, EnvConfig)
	}
	return filepath.Join(folder, "hsmbackup", "config.yaml"), nil
}

// LoadConfig reads the configuration file at path. Without a file, the
// configuration is empty.
func LoadConfig(path string) (*Config, error) {
	b, err := hsm.ReadSmallFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c := &Config{}
	if err := decode(b, c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Find loads the profile of a cluster: by the path of a profile or of its
// folder, if there is such a path, otherwise by its name in the user's
// configuration. ErrUnknown, listing the names there are, if neither fits.
func Find(nameOrPath string) (*Profile, error) {
	if nameOrPath == "" {
		return nil, fmt.Errorf("%w: the name is empty", ErrUnknown)
	}
	if exists(nameOrPath) {
		return Load(nameOrPath)
	}
	file, err := ConfigPath()
	if err != nil {
		return nil, err
	}
	config, err := LoadConfig(file)
	if err != nil {
		return nil, err
	}
	path, ok := config.Clusters[nameOrPath]
	if !ok {
		return nil, fmt.Errorf("%w: %q is neither a path nor a name in %s, which has %s", ErrUnknown, nameOrPath, file, config.names())
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(file), path)
	}
	return Load(path)
}

func (c *Config) names() string {
	if len(c.Clusters) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(c.Clusters)), ", ")
}
