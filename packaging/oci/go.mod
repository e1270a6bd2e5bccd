module github.com/pikoproxy/piko/packaging/oci

go 1.26
