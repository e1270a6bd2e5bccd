package main

import (
	"testing"

	"github.com/pikoproxy/piko/internal/daemon/daemontest"
)

func TestMain(m *testing.M) { daemontest.Main(m, "pikod", main) }

func TestScripts(t *testing.T) { daemontest.Run(t) }
