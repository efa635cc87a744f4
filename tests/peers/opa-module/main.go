// A real Open Policy Agent that answers Envoy's external authorization (gRPC): the agent's own command and runtime, with a
// plugin of ours in the place of opa-envoy-plugin, which the module proxy does not serve. Configured as that one is
// (`plugins.envoy_ext_authz_grpc`: `addr`, `path`), it asks policies with the input that its documentation describes
// (`attributes`, `parsed_path`, `parsed_query`, `parsed_body`, `version`) and reads decisions in the documented forms: a
// boolean, or an object with `allowed`, `headers`, `response_headers_to_add`, `request_headers_to_remove`, `body`,
// `http_status` and `dynamic_metadata`.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	kind "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/open-policy-agent/opa/cmd"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/runtime"
	"github.com/open-policy-agent/opa/v1/util"
	status "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

const name = "envoy_ext_authz_grpc"

type settings struct {
	Addr string `json:"addr"`
	Path string `json:"path"`
}

type factory struct{}

func (factory) Validate(_ *plugins.Manager, given []byte) (any, error) {
	config := settings{Addr: ":9191", Path: "envoy/authz/allow"}
	return config, util.Unmarshal(given, &config)
}

func (factory) New(manager *plugins.Manager, config any) plugins.Plugin {
	manager.UpdatePluginStatus(name, &plugins.Status{State: plugins.StateNotReady})
	return &plugin{manager: manager, settings: config.(settings)}
}

type plugin struct {
	auth.UnimplementedAuthorizationServer
	manager  *plugins.Manager
	settings settings
	server   *grpc.Server
}

func (p *plugin) Start(context.Context) error {
	listener, err := net.Listen("tcp", p.settings.Addr)
	if err != nil {
		return err
	}
	p.server = grpc.NewServer()
	auth.RegisterAuthorizationServer(p.server, p)
	go func() { _ = p.server.Serve(listener) }()
	p.manager.UpdatePluginStatus(name, &plugins.Status{State: plugins.StateOK})
	return nil
}

func (p *plugin) Stop(context.Context) { p.server.Stop() }

func (p *plugin) Reconfigure(context.Context, any) {}

// Check asks the policy. What cannot be decided is an error, and Envoy does what it does without an answer.
func (p *plugin) Check(ctx context.Context, request *auth.CheckRequest) (*auth.CheckResponse, error) {
	input, err := describe(request)
	if err != nil {
		return nil, err
	}
	query := rego.New(
		rego.Query("data."+strings.ReplaceAll(strings.Trim(p.settings.Path, "/"), "/", ".")),
		rego.Compiler(p.manager.GetCompiler()),
		rego.Store(p.manager.Store),
		rego.Input(input),
	)
	found, err := query.Eval(ctx)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s is undefined", p.settings.Path)
	}
	return respond(found[0].Expressions[0].Value)
}

func describe(request *auth.CheckRequest) (map[string]any, error) {
	text, err := protojson.Marshal(request)
	if err != nil {
		return nil, err
	}
	var input map[string]any
	if err := json.Unmarshal(text, &input); err != nil {
		return nil, err
	}
	http := request.GetAttributes().GetRequest().GetHttp()
	target, err := url.Parse(http.GetPath())
	if err != nil {
		return nil, err
	}
	segments := []any{}
	for _, segment := range strings.Split(strings.TrimLeft(target.Path, "/"), "/") {
		segments = append(segments, segment)
	}
	query := map[string]any{}
	for key, values := range target.Query() {
		list := []any{}
		for _, value := range values {
			list = append(list, value)
		}
		query[key] = list
	}
	input["parsed_path"], input["parsed_query"] = segments, query
	if body := http.GetBody(); body != "" && strings.Contains(http.GetHeaders()["content-type"], "application/json") {
		var parsed any
		if json.Unmarshal([]byte(body), &parsed) == nil {
			input["parsed_body"] = parsed
		}
	}
	input["version"] = map[string]any{"encoding": "protojson", "ext_authz": "v3"}
	return input, nil
}

type decision struct {
	Allowed         bool              `json:"allowed"`
	Headers         map[string]string `json:"headers"`
	ResponseHeaders map[string]string `json:"response_headers_to_add"`
	HeadersToRemove []string          `json:"request_headers_to_remove"`
	Body            string            `json:"body"`
	Status          int32             `json:"http_status"`
	Metadata        map[string]any    `json:"dynamic_metadata"`
}

func respond(value any) (*auth.CheckResponse, error) {
	var decided decision
	switch value := value.(type) {
	case bool:
		decided.Allowed = value
	case map[string]any:
		text, err := json.Marshal(value)
		if err == nil {
			err = json.Unmarshal(text, &decided)
		}
		if err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("a decision is a boolean or an object, not %T", value)
	}
	response := &auth.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}}
	if decided.Metadata != nil {
		metadata, err := structpb.NewStruct(decided.Metadata)
		if err != nil {
			return nil, err
		}
		response.DynamicMetadata = metadata
	}
	if decided.Allowed {
		response.HttpResponse = &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{
			Headers:              options(decided.Headers),
			HeadersToRemove:      decided.HeadersToRemove,
			ResponseHeadersToAdd: options(decided.ResponseHeaders),
		}}
		return response, nil
	}
	if decided.Status == 0 {
		decided.Status = 403
	}
	response.Status.Code = int32(codes.PermissionDenied)
	response.HttpResponse = &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
		Status:  &kind.HttpStatus{Code: kind.StatusCode(decided.Status)},
		Headers: options(decided.Headers),
		Body:    decided.Body,
	}}
	return response, nil
}

func options(headers map[string]string) []*core.HeaderValueOption {
	all := []*core.HeaderValueOption{}
	for key, value := range headers {
		all = append(all, &core.HeaderValueOption{Header: &core.HeaderValue{Key: key, Value: value}})
	}
	return all
}

func main() {
	runtime.RegisterPlugin(name, factory{})
	if err := cmd.RootCommand.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
