//go:build !linux

package main

import "errors"

// harden is for Linux only.
func harden() error { return errors.New("core dumps are not disabled on this system") }

// lockMemory is for Linux only.
func lockMemory() error { return errors.New("it is not done on this system") }
