package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestArrangePutsFlagsBeforePositionals(t *testing.T) {
	app := &cli.App{Commands: []*cli.Command{{Name: "key", Subcommands: []*cli.Command{
		{Name: "generate", ArgsUsage: "TYPE", Flags: []cli.Flag{
			&cli.StringFlag{Name: "label"}, &cli.BoolFlag{Name: "json"}, &cli.StringSliceFlag{Name: "attribute"}}},
		{Name: "show", ArgsUsage: "[FILTER…]", Flags: []cli.Flag{&cli.StringSliceFlag{Name: "filter"}}},
	}}}}
	cases := map[string]string{
		"x key generate aes --label a --json":                   "x key generate --label a --json aes",
		"x key generate --json aes --label=a":                   "x key generate --json --label=a aes",
		"x key generate aes --attribute sign=true encrypt=true": "x key generate --attribute sign=true --attribute encrypt=true aes",
		"x key generate aes -- --label":                         "x key generate aes --label",
		"x key show attr.label=a --filter b=c d=e":              "x key show --filter b=c attr.label=a d=e",
		"x key generate aes --label a --help":                   "x key generate --help",
		"x key show -h attr.label=a":                            "x key show --help",
		"x key generate aes --label --help":                     "x key generate --label --help aes",
		"x key --help":                                          "x key --help",
		"x key":                                                 "x key",
		"x nothing":                                             "x nothing",
		"x":                                                     "x",
	}
	for in, want := range cases {
		if got := strings.Join(arrange(app, strings.Fields(in)), " "); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := arrange(app, []string{"x", "key", "generate", "--label", "two words", "aes"}); !slices.Contains(got, "two words") {
		t.Errorf("got %q", got)
	}
}
