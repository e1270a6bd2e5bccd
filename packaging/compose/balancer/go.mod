module github.com/pikoproxy/piko/packaging/compose/balancer

go 1.26
