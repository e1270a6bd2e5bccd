package main

import (
	"maps"
	"strconv"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon/daemontest"
)

func TestEveryKeyIsReloadedOrRefused(t *testing.T) {
	dir, files := t.TempDir(), daemontest.NewFiles(t)
	socket := func(name string) string { return strconv.Quote("unix:" + dir + "/" + name) }
	special := map[string]daemontest.Values{
		"connect.url":         {"connect.url": `"http://127.0.0.1:2"`},
		"connect.token":       {"connect.token": `"secret"`},
		"connect.token_file":  {"connect.token_file": files.Token},
		"admin.listen":        {"admin.listen": socket("other")},
		"forwards[].listen":   {"forwards[].listen": socket("third")},
		"forwards[].endpoint": {"forwards[].endpoint": `"f"`},
	}
	maps.Copy(special, files.ClientTLS("connect.tls"))
	maps.Copy(special, files.ServerTLS("admin.tls"))
	maps.Copy(special, files.Auth("admin.auth"))
	daemontest.EveryKey(t, daemontest.Reload{
		Program: "piko-forward", Keys: config.Keys(config.DefaultForward()), Special: special,
		Base: daemontest.Values{
			"connect.url": `"http://127.0.0.1:1"`, "admin.listen": socket("admin"),
			"forwards[].listen": socket("forward"), "forwards[].endpoint": `"e"`,
		},
		Digest: func(file string) (string, error) {
			c, err := config.LoadForward(file)
			return c.Digest(), err
		},
	})
}
