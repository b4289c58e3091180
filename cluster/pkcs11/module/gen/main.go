// Gen writes the C files of the PKCS #11 module that follow from its tables: the
// functions, their lists and bodies (functions.txt, structs.txt), the mechanisms with
// their parameters (mechanisms.txt, layouts.txt) and the attributes (attributes.txt).
//
// Usage: gen DIRECTORY
package main

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
)

//go:embed *.txt
var tables embed.FS

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	files, err := generate()
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate makes all files, by name.
func generate() (map[string][]byte, error) {
	functions, err := readFunctions()
	if err != nil {
		return nil, err
	}
	structs, err := readStructs()
	if err != nil {
		return nil, err
	}
	numbers, err := readNumbers()
	if err != nil {
		return nil, err
	}
	calls, err := callsFile(functions, structs)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"functions.gen.h": functionsFile(functions),
		"calls.gen.c":     calls,
		"numbers.gen.h":   numbersFile(numbers),
		"tables.gen.c":    tablesFile(numbers),
	}, nil
}
