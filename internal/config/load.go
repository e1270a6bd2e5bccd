package config

// LoadPikod returns the settings of pikod from the file and the files beside it, changed by over. An empty file name
// means no files. The error is a [*Problems] with everything that is wrong.
func LoadPikod(file string, over ...Override) (Pikod, error) { return DefaultPikod(), nil }

// LoadAgent returns the settings of piko-agent, as [LoadPikod] does for pikod.
func LoadAgent(file string, over ...Override) (Agent, error) { return DefaultAgent(), nil }

// LoadForward returns the settings of piko-forward, as [LoadPikod] does for pikod.
func LoadForward(file string, over ...Override) (Forward, error) { return DefaultForward(), nil }

// Override is a setting that the command line gives. It beats every file.
type Override struct {
	From  string // what an error blames, such as "--url"
	Key   string // such as "connect.url"; a list is replaced, whatever its kind
	Value any    // string, bool, int64, []any or map[string]any, as TOML would have it
}

// Offer returns the override behind `piko-agent http ENDPOINT ADDR`: this listener instead of those of the files.
func Offer(protocol, endpoint, addr string) Override {
	return Override{From: "command line", Key: "listeners", Value: []any{
		map[string]any{"protocol": protocol, "endpoint": endpoint, "addr": addr},
	}}
}

// Reach returns the override behind `piko-forward ADDR ENDPOINT`: this forward instead of those of the files. A lone
// port is one of 127.0.0.1.
func Reach(addr, endpoint string) Override {
	if goodPort(addr) {
		addr = "127.0.0.1:" + addr
	}
	return Override{From: "command line", Key: "forwards", Value: []any{
		map[string]any{"listen": addr, "endpoint": endpoint},
	}}
}
