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
	tcp := func(key, value string) daemontest.Values {
		return daemontest.Values{"listeners[].protocol": `"tcp"`, key: value}
	}
	checked := func(key, value string) daemontest.Values {
		return daemontest.Values{"listeners[].health.type": `"http"`, key: value}
	}
	const health = "listeners[].health."
	special := map[string]daemontest.Values{
		"connect.url":                {"connect.url": `"http://127.0.0.1:2"`},
		"connect.token":              {"connect.token": `"secret"`},
		"connect.token_file":         {"connect.token_file": files.Token},
		"connect.tenant_id":          {"connect.tenant_id": `"t"`},
		"connect.proxy_url":          {"connect.proxy_url": `"http://127.0.0.1:3"`},
		"admin.listen":               {"admin.listen": socket("other")},
		"listeners[].endpoint":       {"listeners[].endpoint": `"f"`},
		"listeners[].addr":           {"listeners[].addr": `"127.0.0.1:4"`},
		"listeners[].host_header":    {"listeners[].host_header": `"h.example"`},
		"listeners[].proxy_protocol": tcp("listeners[].proxy_protocol", `"v2"`),
		health + "path":              checked(health+"path", `"/healthz"`),
		health + "interval":          checked(health+"interval", `"7s"`),
		health + "timeout":           checked(health+"timeout", `"1500ms"`),
	}
	maps.Copy(special, files.ClientTLS("connect.tls"))
	for key, v := range files.ClientTLS("listeners[].tls") {
		v = maps.Clone(v)
		v["listeners[].addr"] = `"https://127.0.0.1:4"`
		special[key] = v
	}
	special["listeners[].tls.insecure_skip_verify"] = daemontest.Values{
		"listeners[].tls.insecure_skip_verify": "true", "listeners[].addr": `"https://127.0.0.1:4"`,
	}
	maps.Copy(special, files.ServerTLS("admin.tls"))
	maps.Copy(special, files.Auth("admin.auth"))
	daemontest.EveryKey(t, daemontest.Reload{
		Program: "piko-agent", Keys: config.Keys(config.DefaultAgent()), Special: special,
		Base: daemontest.Values{
			"connect.url": `"http://127.0.0.1:1"`, "admin.listen": socket("admin"),
			"listeners[].endpoint": `"e"`, "listeners[].addr": `"127.0.0.1:3"`,
		},
		Digest: func(file string) (string, error) {
			c, err := config.LoadAgent(file)
			return c.Digest(), err
		},
	})
}
