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
		"proxy.listen":                           {"proxy.listen": socket("proxy2")},
		"upstream.listen":                        {"upstream.listen": socket("upstream2")},
		"upstream.tenants[].id":                  {"upstream.tenants[].id": `"u"`},
		"admin.listen":                           {"admin.listen": socket("admin2")},
		"proxy.limits.max_response_header_bytes": {"proxy.limits.max_response_header_bytes": `"1MiB"`},
		"proxy.endpoints[].endpoint":             {"proxy.endpoints[].endpoint": `"t/f"`},
		"cluster.name":                           {"cluster.name": `"other"`},
		"cluster.node_id":                        {"cluster.node_id": `"n7"`},
		"cluster.zone":                           {"cluster.zone": `"z"`},
		"cluster.listen":                         {"cluster.listen": `"127.0.0.1:9"`},
		"cluster.advertise":                      {"cluster.advertise": `"127.0.0.1:9"`},
		"cluster.secret":                         {"cluster.secret": `"0123456789abcdef0123456789abcdef"`},
		"cluster.secret_file":                    {"cluster.secret_file": files.Token},
		"cluster.tls.cert":                       {"cluster.tls.cert": files.Cert, "cluster.tls.key": files.Key, "cluster.tls.ca": files.Cert},
		"consul.address":                         {"consul.address": `"127.0.0.1:1"`, "cluster.secret": `"0123456789abcdef0123456789abcdef"`},
		"consul.token":                           {"consul.token": `"secret"`},
		"consul.token_file":                      {"consul.token_file": files.Token},
		"consul.prefix":                          {"consul.prefix": `"p"`},
		"consul.datacenter":                      {"consul.datacenter": `"d"`},
		"consul.namespace":                       {"consul.namespace": `"n"`},
		"consul.partition":                       {"consul.partition": `"p"`},
	}
	for _, key := range []string{"key", "ca"} {
		special["cluster.tls."+key] = special["cluster.tls.cert"]
	}
	server := maps.Clone(special["cluster.tls.cert"])
	server["cluster.tls.server_name"] = `"localhost"`
	special["cluster.tls.server_name"] = server
	for _, section := range []string{"proxy", "upstream", "admin"} {
		maps.Copy(special, files.ServerTLS(section+".tls"))
		maps.Copy(special, files.Auth(section+".auth"))
	}
	const tenant = "upstream.tenants[].auth."
	maps.Copy(special, files.Auth("upstream.tenants[].auth"))
	special[tenant+"hmac_secret_key"][tenant+"jwks.url"] = `""` // they exclude each other
	special[tenant+"hmac_secret_key_file"][tenant+"jwks.url"] = `""`
	maps.Copy(special, files.ClientTLS("consul.tls"))
	acme := daemontest.Values{
		"acme.agree_tos": "true", "acme.domains": `["piko.test"]`, "acme.http_listen": `"127.0.0.1:0"`,
		"acme.directory": strconv.Quote(dir + "/acme"), "acme.directory_url": `"https://127.0.0.1:9/directory"`,
	}
	for key := range acme {
		special[key] = acme
	}
	for key, value := range map[string]string{
		"acme.ca": files.Cert, "acme.eab_key_file": files.Token, "acme.eab_key": `"c2VjcmV0"`, "acme.eab_key_id": `"k"`,
		"acme.email": `"ops@piko.test"`, "acme.on_demand": "true", "acme.listeners": `["proxy", "admin"]`,
	} {
		special[key] = maps.Clone(acme)
		special[key][key] = value
	}
	special["acme.eab_key_file"]["acme.eab_key_id"], special["acme.eab_key"]["acme.eab_key_id"] = `"k"`, `"k"`
	special["acme.eab_key_id"]["acme.eab_key"] = `"c2VjcmV0"`
	special["acme.on_demand"]["proxy.domains"] = `["piko.test"]`
	daemontest.EveryKey(t, daemontest.Reload{
		Program: "pikod", Keys: config.Keys(config.DefaultPikod()), Special: special,
		Base: daemontest.Values{
			"proxy.listen": socket("proxy"), "upstream.listen": socket("upstream"), "admin.listen": socket("admin"),
			"cluster.node_id": `"n1"`, "upstream.tenants[].id": `"t"`,
			"upstream.tenants[].auth.jwks.url": `"http://127.0.0.1:9/keys"`, "proxy.endpoints[].endpoint": `"e"`,
		},
		Digest: func(file string) (string, error) {
			c, err := config.LoadPikod(file)
			return c.Digest(), err
		},
	})
}
