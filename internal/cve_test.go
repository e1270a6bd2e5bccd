package internal

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// faultsOfOthers are holes of programs like ours, and of what we are built with, of which each must stay closed here. They were
// chosen from the advisories of Go, Traefik, Caddy, oauth2-proxy, frp, chisel, cloudflared, Tailscale, zrok, HAProxy and
// the libraries for JWT and WebSocket.
const faultsOfOthers = `
2025-22871 2023-39326 2022-1705 2021-33197 2022-2880 2026-39825 2024-24791 2023-45288 2023-39325 2026-56853 2025-68121
2026-32283 2026-56862 2024-24790 2025-47910 2026-42507
2024-45410 2026-29054 2026-71324 2026-71326 2026-26998 2026-26999 2026-22045 2026-48491 2026-53622 2022-23469 2026-65600
2026-48020 2026-32305
2026-27586 2026-27588 2026-27589 2026-30851
2025-54576 2025-64484 2026-41059 2026-40575 2026-34457
2026-40910 2026-73564 2024-43798 2026-48113 2020-24356 2023-1314 2022-41924 2022-41925 2026-40304 2026-40303
2021-40346 2023-25725 2023-40225 2023-45539
2025-30204 2024-51744 2015-9235 2018-0114 2020-27813 2022-21698
`

// Each of the faults has a test that is named after it, so that nobody takes one away without noticing.
func TestEveryFaultOfOthersHasATestOfItsName(t *testing.T) {
	tested := map[string]bool{}
	name := regexp.MustCompile(`(?m)^func TestCVE_(\d{4})_(\d+)_`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range name.FindAllSubmatch(b, -1) {
			tested[string(m[1])+"-"+string(m[2])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range strings.Fields(faultsOfOthers) {
		if !tested[fault] {
			t.Errorf("no test is named after CVE-%s", fault)
		}
		delete(tested, fault)
	}
	for fault := range tested {
		t.Errorf("CVE-%s has a test and is missing in the list", fault)
	}
}
