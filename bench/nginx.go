package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// nginxSettings make nginx the plain reverse proxy that an operator would put there: all cores, connections kept on both
// sides and never recycled, the usual headers for the service, and a log line for each request.
const nginxSettings = `daemon off;
worker_processes auto;
pid {dir}/nginx-{n}.pid;
error_log stderr;
{user}
events { worker_connections 8192; }
http {
	access_log {log};
	keepalive_requests 1000000000;
	client_max_body_size 0;
	client_body_buffer_size 128k;
	client_body_temp_path {dir}/nginx-{n}-body;
	proxy_temp_path {dir}/nginx-{n}-proxy;
	fastcgi_temp_path {dir}/nginx-{n}-fastcgi;
	uwsgi_temp_path {dir}/nginx-{n}-uwsgi;
	scgi_temp_path {dir}/nginx-{n}-scgi;
	map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
	upstream service { server {service}; keepalive 512; keepalive_requests 1000000000; }
	server {
		listen {http};
		listen {https} ssl;
		listen {h2} http2;
		ssl_certificate {cert};
		ssl_certificate_key {key};
		location / {
			proxy_pass http://service;
			proxy_http_version 1.1;
			proxy_max_temp_file_size 0;
			proxy_set_header Host $http_host;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_set_header X-Forwarded-Proto $scheme;
		}
	}
}
`

// nginx is the reference: one hop, no tunnel.
func (l *lab) nginx(log bool) (*target, error) {
	t := &target{host: "web.nginx.test"}
	if err := freePorts(&t.http, &t.https, &t.h2); err != nil {
		return nil, err
	}
	n := fmt.Sprint(len(l.list))
	where := "off"
	if log {
		where = filepath.Join(l.logs, "nginx-"+n+"-access.log")
	}
	user := ""
	if root() {
		user = "user root;" // the directory of this run is not for others
	}
	file, err := l.file("nginx.conf", strings.NewReplacer("{dir}", l.dir, "{n}", n, "{log}", where, "{user}", user,
		"{service}", l.webAddr, "{http}", t.http, "{https}", t.https, "{h2}", t.h2, "{cert}", l.cert.cert, "{key}", l.cert.key,
	).Replace(nginxSettings))
	if err != nil {
		return nil, err
	}
	g, err := l.start("nginx", nginxPath(), "-c", file, "-p", l.dir)
	if err != nil {
		return nil, err
	}
	t.groups = []*group{g}
	return t, errors.Join(l.awaitAnswer(t.http, t.host), l.awaitPort(t.https), l.awaitPort(t.h2))
}
