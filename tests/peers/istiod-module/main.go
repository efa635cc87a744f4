// What Istio's own control plane tells proxies, for a configuration that somebody asks about: istiod's discovery server in this
// process, as Istio's tests make it, with the objects of the question and nothing else, and a stream of its ADS for each proxy.
//
// Each line of standard input is a question, each line of standard output its answer:
//
//	{"mesh": "YAML of MeshConfig", "networks": "YAML of MeshNetworks", "kubernetes": [OBJECT...], "istio": [OBJECT...],
//	 "proxies": {NAME: {"id": "sidecar~IP~ID~DOMAIN", "metadata": {...}, "locality": {"region": ...}}}}
//	{"proxies": {NAME: {TYPE URL: {RESOURCE: "base64"}}}} or {"error": "..."}
//
// Objects under `kubernetes` are those for which istiod asks an API server, Gateway API and secrets among them. Those under `istio`
// are its own, and are checked as its webhook does. No question sees anything of the ones before it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"reflect"
	"slices"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	v3 "istio.io/istio/pilot/pkg/xds/v3"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pilot/test/xdstest"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/config/schema/gatewayapi"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
)

// How long a proxy waits for an answer of istiod's.
const patience = 30 * time.Second

// The time in which its queues may go on before it is asked again.
const pause = 50 * time.Millisecond

// As long as a question may be.
const longest = 16 << 20

type question struct {
	Mesh       string            `json:"mesh"`
	Networks   string            `json:"networks"`
	Kubernetes []json.RawMessage `json:"kubernetes"`
	Istio      []json.RawMessage `json:"istio"`
	Proxies    map[string]proxy  `json:"proxies"`
}

type proxy struct {
	ID       string          `json:"id"`
	Metadata json.RawMessage `json:"metadata"`
	Locality json.RawMessage `json:"locality"`
}

// Resources by type and name, as bytes.
type resources map[string]map[string][]byte

type answer struct {
	Proxies map[string]resources `json:"proxies,omitempty"`
	Error   string               `json:"error,omitempty"`
}

func main() {
	// The definitions that the tests' API server has carry no version, by which istiod would know what it may read.
	clear(gatewayapi.MinimumCRDVersions)
	// What is logged goes where it cannot be taken for an answer.
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	options.SetDefaultOutputLevel(log.OverrideScopeName, log.ErrorLevel)
	if err := log.Configure(options); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, longest)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		told, err := ask(lines.Bytes())
		if err != nil {
			told = answer{Error: err.Error()}
		}
		if err := answers.Encode(told); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ask has a control plane of its own answer one question.
func ask(text []byte) (answer, error) {
	var asked question
	if err := json.Unmarshal(text, &asked); err != nil {
		return answer{}, err
	}
	options, err := asked.options()
	if err != nil {
		return answer{}, err
	}
	var told answer
	var failed error
	if err := test.Wrap(func(t test.Failer) {
		server := xds.NewFakeDiscoveryServer(t, options)
		told, failed = asked.settled(t, server)
	}); err != nil {
		return answer{}, err
	}
	return told, failed
}

// settled asks for all proxies until the answers stay as they are: parts of istiod follow each other by queues, of which nobody
// says when they are empty.
func (q question) settled(t test.Failer, server *xds.FakeDiscoveryServer) (answer, error) {
	var before map[string]resources
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pause) {
		server.Discovery.ConfigUpdate(&model.PushRequest{Forced: true, Reason: model.NewReasonStats(model.ConfigUpdate)})
		server.EnsureSynced(t)
		now := map[string]resources{}
		for name, proxy := range q.Proxies {
			var err error
			if now[name], err = proxy.resources(server); err != nil {
				return answer{}, fmt.Errorf("%s: %w", name, err)
			}
		}
		if reflect.DeepEqual(before, now) {
			return answer{Proxies: now}, nil
		}
		before = now
	}
	return answer{}, fmt.Errorf("what istiod says still changes after %v", patience)
}

func (q question) options() (xds.FakeOptions, error) {
	// Whether a gateway may read a secret is no question here: no account is bound to anything.
	options := xds.FakeOptions{DisableSecretAuthorization: true}
	var err error
	if options.MeshConfig, err = mesh.ApplyMeshConfigDefaults(q.Mesh); err != nil {
		return options, fmt.Errorf("mesh: %w", err)
	}
	networks, err := mesh.ParseMeshNetworks(q.Networks)
	if err != nil {
		return options, fmt.Errorf("networks: %w", err)
	}
	options.NetworksWatcher = meshwatcher.NewFixedNetworksWatcher(networks)
	decoder := kube.IstioCodec.UniversalDeserializer()
	for _, object := range q.Kubernetes {
		decoded, _, err := decoder.Decode(object, nil, nil)
		if err != nil {
			return options, fmt.Errorf("%w: %s", err, object)
		}
		options.KubernetesObjects = append(options.KubernetesObjects, decoded)
	}
	for _, object := range q.Istio {
		parsed, unknown, err := crd.ParseInputs(string(object))
		if err != nil || len(unknown) > 0 || len(parsed) != 1 {
			return options, fmt.Errorf("no object of Istio's: %w: %s", err, object)
		}
		options.Configs = append(options.Configs, placed(parsed[0]))
	}
	return options, nil
}

// placed gives an object what its API server and istiod's reader of it would have.
func placed(object config.Config) config.Config {
	if object.Namespace == "" {
		object.Namespace = "default"
	}
	object.Domain = "cluster.local"
	return object
}

// resources asks for everything that a proxy asks for, in a proxy's order.
func (p proxy) resources(server *xds.FakeDiscoveryServer) (resources, error) {
	node := &core.Node{Id: p.ID, Metadata: &structpb.Struct{}, Locality: &core.Locality{}}
	if err := protojson.Unmarshal(p.Metadata, node.Metadata); err != nil {
		return nil, err
	}
	if len(p.Locality) > 0 {
		if err := protojson.Unmarshal(p.Locality, node.Locality); err != nil {
			return nil, err
		}
	}
	connection, err := grpc.NewClient("passthrough:istiod",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(longest)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return server.BufListener.Dial() }))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ads, err := discovery.NewAggregatedDiscoveryServiceClient(connection).StreamAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	told := resources{}
	s := stream{ads, node, told}

	clusters, err := get(s, v3.ClusterType, nil, func(c *cluster.Cluster) string { return c.Name })
	if err != nil {
		return nil, err
	}
	if names := xdstest.ExtractEdsClusterNames(clusters); len(names) > 0 {
		if _, err := get(s, v3.EndpointType, names, func(a *endpoint.ClusterLoadAssignment) string { return a.ClusterName }); err != nil {
			return nil, err
		}
	}
	listeners, err := get(s, v3.ListenerType, nil, func(l *listener.Listener) string { return l.Name })
	if err != nil {
		return nil, err
	}
	if names := xdstest.ExtractRoutesFromListeners(listeners); len(names) > 0 {
		if _, err := get(s, v3.RouteType, names, func(r *route.RouteConfiguration) string { return r.Name }); err != nil {
			return nil, err
		}
	}
	return told, nil
}

// A proxy's stream, and what came on it.
type stream struct {
	ads  discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node *core.Node
	told resources
}

// get asks for resources of a type, and waits for them.
func get[T any, M interface {
	*T
	proto.Message
}](s stream, url string, names []string, name func(M) string) ([]M, error) {
	slices.Sort(names)
	names = slices.Compact(names)
	request := &discovery.DiscoveryRequest{Node: s.node, TypeUrl: url, ResourceNames: names}
	if err := s.ads.Send(request); err != nil {
		return nil, err
	}
	for {
		response, err := s.ads.Recv()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", url, err)
		}
		// Of another type is what was pushed anew in between.
		if response.TypeUrl != url {
			continue
		}
		var all []M
		s.told[url] = map[string][]byte{}
		for _, resource := range response.Resources {
			one := M(new(T))
			if err := resource.UnmarshalTo(one); err != nil {
				return nil, err
			}
			s.told[url][name(one)] = bytes.Clone(resource.Value)
			all = append(all, one)
		}
		return all, nil
	}
}
