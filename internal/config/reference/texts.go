package main

import "fmt"

// example is an excerpt of a settings file for the manual page. A test loads each.
type example struct{ title, toml string }

func introduction(b book) string {
	return fmt.Sprintf("The settings of %s(%d) are read from a file in TOML. Without the option --config that is "+
		"`/etc/piko/%s.toml` if it exists; else every key has its default. An empty file is good.", b.daemon, b.section, b.daemon)
}

// rules returns the paragraphs about what all settings files have in common.
func rules(b book) []string {
	return []string{
		"An unknown key, a value of the wrong type and a key given twice are errors. All errors are reported, each with " +
			"file, line and key, what was wanted and what was found.",
		"Durations are texts of numbers with units, such as `\"5s\"` or `\"1m30s\"`, with the units ns, us, ms, s, m and h. " +
			"Sizes are texts such as `\"64KiB\"`, with the units B, KiB, MiB, GiB and TiB, or KB, MB, GB and TB for powers of ten. " +
			"A bare number is refused for both.",
		"`${VAR}` inside a text stands for a variable of the environment, and `${VAR:-default}` for its value or, if it is not set or " +
			"empty, the default. `$$` is a dollar. A variable that is not set and has no default is an error.",
		"A key whose name ends in _file names a file that holds the value of the key without that ending. The file is at most 64 KiB; " +
			"line ends at its end are left out. Only one of the two keys may be given. " +
			"Secrets never appear in logs, status or the output of --dump-config.",
		"A file named by a relative path is looked for in the directory `$CREDENTIALS_DIRECTORY`, which systemd sets for a service with " +
			"credentials, and then beside the settings file that names it.",
		"A listener's address is `\"host:port\"`, `\":port\"` for every address of the host, or `\"unix:/path\"`. A socket that systemd hands " +
			"over under the listener's name is used instead.",
		fmt.Sprintf("After the file, all files in the directory `%s.d` beside it whose names end in .toml and do not begin with a dot are read "+
			"in the order of their names; then the command line is. What is read later wins: a value replaces a value, and a list replaces a "+
			"list. A list of tables `[[name]]` grows: an entry with a new key is added, and an entry whose key is known replaces the "+
			"known entry as a whole. An entry's key is named where the list is described.", b.daemon),
		"A file is at most 1 MiB, and nests at most 16 levels deep.",
		"When a file changes, a running process takes over the new settings, except for keys that are said to need a restart.",
	}
}

func pikodExamples() []example {
	return []example{
		{"Let agents connect from elsewhere, if their token is signed with the key in a file, and serve only hosts under one domain:", `
[proxy]
domains = ["piko.example.com"]

[upstream]
listen = ":8001"

[upstream.auth]
hmac_secret_key_file = "upstream.key"
require_endpoints = true
`},
		{"A node of a cluster, in a container that passes its name and address:", `
[cluster]
node_id = "${POD_NAME:-node-1}"
advertise = "${POD_IP:-10.0.0.1}"
secret_file = "cluster.secret"

[consul]
address = "http://127.0.0.1:8500"
`},
	}
}

func agentExamples() []example {
	return []example{
		{"Offer a web service and a database:", `
[connect]
url = "https://piko.example.com:8001"
token_file = "agent.token"

[[listeners]]
endpoint = "shop"
addr = "localhost:3000"
health = { type = "http", path = "/healthz" }

[[listeners]]
endpoint = "shop-redis"
addr = "localhost:6379"
protocol = "tcp"
`},
	}
}

func forwardExamples() []example {
	return []example{
		{"Reach a database as if it ran here:", `
[connect]
url = "https://piko.example.com"
token_file = "client.token"

[[forwards]]
listen = "127.0.0.1:6379"
endpoint = "shop-redis"

[[forwards]]
listen = "unix:/run/piko-forward/redis.sock"
endpoint = "shop-redis"
`},
	}
}
