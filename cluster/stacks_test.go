package cluster

import "strings"

type stack struct{ id, text string }

// splitStacks picks out the goroutines that run code of package cluster, tests
// apart.
func splitStacks(dump string) []stack {
	var out []stack
	for _, text := range strings.Split(dump, "\n\n") {
		head, _, _ := strings.Cut(text, " [")
		if strings.Contains(text, "cluster.(*") && !strings.Contains(text, "testing.tRunner(") {
			out = append(out, stack{head, text})
		}
	}
	return out
}
