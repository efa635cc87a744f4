# What the peers tier asks a real Open Policy Agent about: rules over everything that it is told.
package envoy.authz

http := input.attributes.request.http

default allow := {"allowed": false, "body": "not by this policy", "headers": {"x-opa": "no"}}

# A plain yes.
allow if input.parsed_path[0] == "public"

# A yes with conditions, and changes to request and response.
allow := answer if {
	input.parsed_path[0] == "users"
	http.headers["x-user"] == input.parsed_path[1]
	answer := {
		"allowed": true,
		"headers": {"x-opa-user": input.parsed_path[1]},
		"request_headers_to_remove": ["x-secret"],
		"response_headers_to_add": {"x-opa": "yes"},
	}
}

# A no with a status of its own.
allow := answer if {
	input.parsed_path[0] == "users"
	not http.headers["x-user"]
	answer := {
		"allowed": false,
		"http_status": 401,
		"body": "who are you?",
		"headers": {"www-authenticate": "Basic"},
	}
}

allow if {
	input.parsed_path[0] == "search"
	input.parsed_query.level == ["low"]
}

allow if {
	input.parsed_path[0] == "orders"
	http.method == "POST"
	input.parsed_body.amount <= 100
}

# Two answers are none.
allow := {"allowed": true} if input.parsed_path[0] == "broken"

allow := {"allowed": false} if input.parsed_path[0] == "broken"
