module github.com/pikoproxy/piko/packaging/test/box

go 1.26
