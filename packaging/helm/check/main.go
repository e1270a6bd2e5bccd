// Command check reads what `helm template` writes and fails unless every object is one that Kubernetes knows, with no
// field that it does not: `helm template packaging/helm/piko | check -want StatefulSet,Service`.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
)

func main() {
	want := flag.String("want", "", "kinds that must be there, with commas")
	flag.Parse()
	found, err := check(os.Stdin)
	for _, kind := range strings.Split(*want, ",") {
		if kind != "" && found[kind] == 0 {
			err = errors.Join(err, fmt.Errorf("no %s", kind))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("decoded strictly:", found)
}

func check(r io.Reader) (map[string]int, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	docs := yaml.NewYAMLReader(bufio.NewReader(r))
	found := map[string]int{}
	var problems error
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return found, problems
		}
		if err != nil {
			return found, errors.Join(problems, err)
		}
		if strings.TrimSpace(string(doc)) == "" || onlyComments(doc) {
			continue
		}
		_, kind, err := strict.Decode(doc, nil, nil)
		if err != nil {
			problems = errors.Join(problems, fmt.Errorf("%w in\n%s", err, doc))
			continue
		}
		found[kind.Kind]++
	}
}

func onlyComments(doc []byte) bool {
	for line := range strings.Lines(string(doc)) {
		if text := strings.TrimSpace(line); text != "" && text[0] != '#' {
			return false
		}
	}
	return true
}
