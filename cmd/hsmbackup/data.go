package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
)

// maxInput bounds what a verb reads; single calls of an HSM take 16 KiB or so.
const maxInput = 1 << 20

// dataFlags say where a verb reads its data and writes its result.
func dataFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "in", Aliases: []string{"data-path"}, Usage: "read the data from `FILE`; without it, and without --data, from standard input"},
		&cli.StringFlag{Name: "data", Usage: "the data itself, in `BASE64`"},
		&cli.StringFlag{Name: "out", Aliases: []string{"path"}, Usage: "write the raw result to `FILE` instead of base64 to standard output"},
	}
}

// input reads the data of a verb.
func (p *program) input(cc *cli.Context) ([]byte, error) {
	if cc.IsSet("data") {
		return decodeBase64("data", cc.String("data"))
	}
	return p.readInput(cc.String("in"))
}

func decodeBase64(flag, s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, usagef("--%s: not base64", flag)
	}
	return b, nil
}

func (p *program) readInput(path string) ([]byte, error) {
	in := p.in
	if path != "" && path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err == nil && len(b) > maxInput {
		err = usagef("the data is larger than %s", size(maxInput))
	}
	return b, err
}

// output writes the result of a verb: raw to --out, otherwise as --json or as a
// line of base64.
func (p *program) output(cc *cli.Context, doc map[string]any, field string, b []byte) error {
	if path := cc.String("out"); path != "" {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
		doc["path"] = path
		return p.result(doc, func(w io.Writer) { fmt.Fprintf(w, "%d bytes written to %s\n", len(b), path) })
	}
	doc[field] = base64.StdEncoding.EncodeToString(b)
	return p.result(doc, func(w io.Writer) { fmt.Fprintln(w, doc[field]) })
}
