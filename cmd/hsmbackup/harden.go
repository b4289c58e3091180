package main

// guardMemory does what the system allows so that keys in the memory of a process
// that runs on do not reach a disk, and says what it does not allow.
func (p *program) guardMemory() {
	if err := harden(); err != nil {
		p.log.Warn("memory of this process may reach the disk in a core dump", "error", err)
	}
	if err := lockMemory(); err != nil {
		p.log.Warn("memory of this process may be swapped to disk: use encrypted swap, or none", "why", err)
	}
}
