// Says of Istio's resources what a cluster with Istio says of them: the API server by Istio's definitions (their schemas and
// rules), then Istio's webhook. A line of standard input is one object as JSON, a line of standard output what is wrong with it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/hashicorp/go-multierror"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kubejson "k8s.io/apimachinery/pkg/util/json"

	pilotcrd "istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/crd"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/resource"
	"istio.io/istio/pkg/log"
)

type verdict struct {
	// What the API server refuses it for.
	Schema string `json:"schema,omitempty"`
	// What the webhook refuses it for.
	Webhook string `json:"webhook,omitempty"`
	// What it only warns of.
	Warnings []string `json:"warnings,omitempty"`
	// Nobody here knows the kind.
	Unknown bool `json:"unknown,omitempty"`
}

func webhook(raw []byte) (warnings []string, err error) {
	var object pilotcrd.IstioKind
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, err
	}
	gvk := object.GroupVersionKind()
	schema, known := collections.Pilot.FindByGroupKind(resource.FromKubernetesGVK(&gvk))
	if !known {
		return nil, fmt.Errorf("unrecognized type %v", gvk)
	}
	var converted *config.Config
	if converted, err = pilotcrd.ConvertObject(schema, &object, "cluster.local"); err != nil {
		return nil, err
	}
	warning, err := schema.ValidateConfig(*converted)
	if all, several := warning.(*multierror.Error); several && all != nil {
		for _, one := range all.Errors {
			warnings = append(warnings, one.Error())
		}
	} else if warning != nil {
		warnings = append(warnings, warning.Error())
	}
	return warnings, err
}

func judge(definitions *crd.Validator, raw []byte) (said verdict) {
	// What ends Istio's own program is no verdict of a user's interest, and must not end this one.
	defer func() {
		if ended := recover(); ended != nil {
			said.Webhook = fmt.Sprintf("panic: %v", ended)
		}
	}()
	object := &unstructured.Unstructured{}
	// As the API server does: whole numbers stay whole.
	if err := kubejson.Unmarshal(raw, &object.Object); err != nil {
		said.Schema = err.Error()
		return said
	}
	kind := object.GroupVersionKind()
	if _, known := collections.Pilot.FindByGroupKind(resource.FromKubernetesGVK(&kind)); !known {
		said.Unknown = true
		return said
	}
	if err := definitions.ValidateCustomResource(object.DeepCopy()); err != nil {
		said.Schema = err.Error()
	}
	warnings, err := webhook(raw)
	if err != nil {
		said.Webhook = err.Error()
	}
	said.Warnings = warnings
	return said
}

func main() {
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.NoneLevel)
	}
	definitions, err := crd.NewValidatorFromFilesWithOptions(os.Args[1:], crd.WithoutCRDValidation())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	encoder := json.NewEncoder(out)
	for lines.Scan() {
		if err := encoder.Encode(judge(definitions, append([]byte(nil), lines.Bytes()...))); err != nil {
			os.Exit(1)
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
