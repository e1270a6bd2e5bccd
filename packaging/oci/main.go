// Command oci writes a container image with one static program, for several architectures, as an OCI image layout: a
// folder that skopeo, buildah, podman and others read. It needs no other tool, no root and no base image, and the same
// input gives the same bytes.
//
//	oci -name pikod -version 1.2.3 -epoch 1770000000 -out dist/pikod.oci amd64=build/amd64/pikod arm64=build/arm64/pikod
//
// The image has the program, its settings if there are any, certificates of authorities, the user 65532, a writable /tmp,
// and nothing else.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
	nobody       = 65532
)

// image is what was asked for.
type image struct {
	name, version, revision, title string
	ports                          []string
	certificates, license          string // files
	settings                       string // contents of /etc/piko/NAME.toml; none if empty
	created                        time.Time
	out                            string
}

// descriptor names a blob, as in the OCI image specification.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

func main() {
	var im image
	var epoch int64
	var ports string
	flag.StringVar(&im.name, "name", "", "name of the program")
	flag.StringVar(&im.version, "version", "", "its version")
	flag.StringVar(&im.revision, "revision", "", "commit it was built from")
	flag.StringVar(&im.title, "title", "", "what it is, in one line")
	flag.StringVar(&ports, "ports", "", "ports it listens on, with commas")
	flag.StringVar(&im.certificates, "certificates", "/etc/ssl/certs/ca-certificates.crt", "certificates of authorities")
	flag.StringVar(&im.license, "license", "LICENSE", "license text")
	flag.StringVar(&im.settings, "settings", "", "text of /etc/piko/NAME.toml; none if empty")
	flag.Int64Var(&epoch, "epoch", 0, "time of everything, in seconds since 1970")
	flag.StringVar(&im.out, "out", "", "folder to write")
	flag.Parse()
	if ports != "" {
		im.ports = strings.Split(ports, ",")
	}
	im.created = time.Unix(epoch, 0).UTC()
	if err := im.write(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "oci:", err)
		os.Exit(1)
	}
}

// write writes the layout with one image for each "architecture=file".
func (im *image) write(binaries []string) error {
	if im.name == "" || im.version == "" || im.out == "" || len(binaries) == 0 {
		return fmt.Errorf("want -name, -version, -out and at least one ARCHITECTURE=FILE")
	}
	if err := os.RemoveAll(im.out); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(im.out, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	var manifests []descriptor
	for _, b := range binaries {
		arch, file, ok := strings.Cut(b, "=")
		if !ok {
			return fmt.Errorf("%q: want ARCHITECTURE=FILE", b)
		}
		d, err := im.manifest(arch, file)
		if err != nil {
			return err
		}
		manifests = append(manifests, d)
	}
	index, err := im.json(typeIndex, map[string]any{
		"schemaVersion": 2, "mediaType": typeIndex, "manifests": manifests, "annotations": im.labels(),
	})
	if err != nil {
		return err
	}
	index.Annotations = map[string]string{"org.opencontainers.image.ref.name": im.version}
	if err := im.file("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return err
	}
	return im.file("index.json", map[string]any{"schemaVersion": 2, "manifests": []descriptor{index}})
}

// manifest writes the image for one architecture.
func (im *image) manifest(arch, binary string) (descriptor, error) {
	plain, err := im.layer(binary)
	if err != nil {
		return descriptor{}, err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return descriptor{}, err
	}
	if _, err := z.Write(plain); err != nil {
		return descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return descriptor{}, err
	}
	layer, err := im.blob(typeLayer, packed.Bytes())
	if err != nil {
		return descriptor{}, err
	}
	ports := map[string]struct{}{}
	for _, p := range im.ports {
		ports[p+"/tcp"] = struct{}{}
	}
	created := im.created.Format(time.RFC3339)
	config, err := im.json(typeConfig, map[string]any{
		"created": created, "architecture": arch, "os": "linux",
		"config": map[string]any{
			"User":         fmt.Sprintf("%d:%d", nobody, nobody), // a number: runAsNonRoot can't look up names
			"Entrypoint":   []string{"/usr/bin/" + im.name},
			"Env":          []string{"PATH=/usr/bin"},
			"WorkingDir":   "/",
			"StopSignal":   "SIGTERM",
			"ExposedPorts": ports,
			"Labels":       im.labels(),
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{digest(plain)}},
		"history": []map[string]string{{"created": created, "created_by": "packaging/oci"}},
	})
	if err != nil {
		return descriptor{}, err
	}
	d, err := im.json(typeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config, "layers": []descriptor{layer},
		"annotations": im.labels(),
	})
	d.Platform = &platform{arch, "linux"}
	return d, err
}

func (im *image) labels() map[string]string {
	const home = "https://github.com/pikoproxy/piko"
	all := map[string]string{
		"title": im.name, "description": im.title, "version": im.version, "revision": im.revision,
		"created": im.created.Format(time.RFC3339), "url": home, "source": home, "documentation": home + "#readme",
		"licenses": "MIT", "vendor": "The Piko Authors", "authors": "The Piko Authors",
	}
	labels := map[string]string{}
	for k, v := range all {
		labels["org.opencontainers.image."+k] = v
	}
	return labels
}

// entry is one name in the file system.
type entry struct {
	name     string
	mode     int64
	file     string // copied from
	contents string
}

// layer returns the file system as a tar archive.
func (im *image) layer(binary string) ([]byte, error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	entries := []entry{
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, contents: fmt.Sprintf("root:x:0:\nnonroot:x:%d:\n", nobody)},
		{name: "etc/nsswitch.conf", mode: 0o644, contents: "hosts: files dns\n"},
		{name: "etc/passwd", mode: 0o644, contents: fmt.Sprintf(
			"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:%[1]d:%[1]d:nonroot:/:/sbin/nologin\n", nobody)},
		{name: "etc/piko/", mode: 0o755}, // settings are mounted here
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, file: im.certificates},
		{name: "tmp/", mode: 0o1777},
		{name: "usr/", mode: 0o755},
		{name: "usr/bin/", mode: 0o755},
		{name: "usr/bin/" + im.name, mode: 0o755, file: binary},
		{name: "usr/share/", mode: 0o755},
		{name: "usr/share/licenses/", mode: 0o755},
		{name: "usr/share/licenses/" + im.name, mode: 0o644, file: im.license},
	}
	if im.settings != "" {
		settings := entry{name: "etc/piko/" + im.name + ".toml", mode: 0o644, contents: im.settings + "\n"}
		at := slices.IndexFunc(entries, func(e entry) bool { return e.name == "etc/ssl/" })
		entries = slices.Insert(entries, at, settings)
	}
	for _, e := range entries {
		contents := []byte(e.contents)
		if e.file != "" {
			var err error
			if contents, err = os.ReadFile(e.file); err != nil {
				return nil, err
			}
		}
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(contents)), ModTime: im.created, Format: tar.FormatUSTAR}
		if err := t.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := t.Write(contents); err != nil {
			return nil, err
		}
	}
	err := t.Close()
	return b.Bytes(), err
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// json writes a blob with v; maps come out in the order of their keys.
func (im *image) json(mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return im.blob(mediaType, b)
}

func (im *image) blob(mediaType string, b []byte) (descriptor, error) {
	d := descriptor{MediaType: mediaType, Digest: digest(b), Size: len(b)}
	name := filepath.Join(im.out, "blobs", "sha256", strings.TrimPrefix(d.Digest, "sha256:"))
	return d, os.WriteFile(name, b, 0o644)
}

func (im *image) file(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(im.out, name), b, 0o644)
}
