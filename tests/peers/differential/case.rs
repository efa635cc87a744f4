//! What a case is made of.

use serde_json::{Value, json};

/// What a client does on one raw connection, in order.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes these bytes.
    Send(Vec<u8>),
    /// Reads one whole final answer to a request of this method, and the informational ones before it.
    Answer(&'static str),
    /// Reads until what came since the last read has this in it.
    Until(&'static str),
    /// Reads until the connection ends.
    End,
    /// Ends its own sending.
    Fin,
    /// Closes with a reset; no step can follow.
    Abort,
    /// Raises a flag for the upstream.
    Tell(&'static str),
    /// Waits for a flag of the upstream.
    Await(&'static str),
    /// Lets time pass, in milliseconds; only where a time limit is what the case is about.
    Pause(u64),
}

/// What the upstream does on one connection, in order.
#[derive(Clone, Debug)]
pub enum Play {
    /// Reads a request's head.
    Head,
    /// Reads a whole request.
    Request,
    /// Reads until what came has this in it.
    Until(&'static str),
    /// Writes these bytes.
    Send(Vec<u8>),
    /// Closes both ways.
    Close,
    /// Ends its own sending.
    Fin,
    /// Closes with a reset.
    Reset,
    /// Raises a flag for the client.
    Tell(&'static str),
    /// Waits for a flag of the client.
    Await(&'static str),
    /// Gives what was sent the time to get to the client, in milliseconds; for clients that cannot raise a flag.
    Pause(u64),
}

/// A request of an HTTP/2 client.
#[derive(Clone, Debug, Default)]
pub struct H2Request {
    /// The method.
    pub method: &'static str,
    /// The scheme.
    pub scheme: &'static str,
    /// The authority; none is sent where it is empty.
    pub authority: &'static str,
    /// The path.
    pub path: &'static str,
    /// Extended CONNECT's protocol.
    pub protocol: Option<&'static str>,
    /// Fields.
    pub headers: Vec<(&'static str, &'static str)>,
    /// Pieces of the body.
    pub body: Vec<&'static str>,
    /// Trailers.
    pub trailers: Vec<(&'static str, &'static str)>,
    /// Leave the request without an end.
    pub open: bool,
    /// Leave it without an end, and reset it when this came.
    pub until: Option<&'static str>,
}

/// The client's side.
#[derive(Clone, Debug)]
pub enum Client {
    /// Raw bytes.
    Raw(Vec<Step>),
    /// HTTP/2 streams, one after the other on one connection.
    H2(Vec<H2Request>),
}

/// How an HTTP/2 upstream answers each request.
#[derive(Clone, Debug)]
pub enum H2Answer {
    /// With this, after having read the whole request.
    Full {
        /// Informational heads.
        informational: Vec<(u16, Vec<(&'static str, &'static str)>)>,
        /// The status.
        status: u16,
        /// Fields.
        headers: Vec<(&'static str, &'static str)>,
        /// Pieces of the body.
        body: Vec<&'static str>,
        /// Trailers.
        trailers: Vec<(&'static str, &'static str)>,
    },
    /// With a reset of the stream, after having read the whole request.
    Reset(u32),
    /// With a head and a piece of a body, then a reset.
    ResetInBody(u32),
}

/// The upstream's side.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// What happens on the first, second, ... connection; further ones are closed.
    Raw(Vec<Vec<Play>>),
    /// HTTP/2: the answers, in order.
    H2(Vec<H2Answer>),
    /// Nothing listens there.
    Refusing,
}

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name: the test's.
    pub name: &'static str,
    /// Fields of the connection manager.
    pub hcm: Value,
    /// Fields of the route's action.
    pub route: Value,
    /// The routes, where the one for everything does not do.
    pub routes: Option<Value>,
    /// Fields of the cluster.
    pub cluster: Value,
    /// The client.
    pub client: Client,
    /// The upstream.
    pub upstream: Upstream,
    /// A difference that we want: its name in `differences.yaml`, and what our side must have seen. The test demands that it is
    /// there.
    pub deliberate: Option<(&'static str, &'static str)>,
    /// The same of a difference that is in the access log alone.
    pub logged: Option<(&'static str, &'static str)>,
    /// Whether there is a connection to the upstream before the request breaks is up to chance, on both sides: our address on it is
    /// not compared in the access log.
    pub connects_by_chance: bool,
}

impl Case {
    /// A raw client that sends these bytes; the upstream answers 200.
    pub fn raw(bytes: impl AsRef<[u8]>) -> Self {
        Self {
            name: "",
            hcm: json!({}),
            route: json!({}),
            routes: None,
            cluster: json!({}),
            client: Client::Raw(vec![Step::Send(bytes.as_ref().to_vec())]),
            upstream: Upstream::Raw(vec![vec![
                Play::Request,
                Play::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()),
            ]]),
            deliberate: None,
            logged: None,
            connects_by_chance: false,
        }
    }

    /// An HTTP/2 client; the upstream answers 200.
    pub fn h2(requests: Vec<H2Request>) -> Self {
        Self { client: Client::H2(requests), ..Self::raw("") }
    }

    fn step(mut self, step: Step) -> Self {
        match &mut self.client {
            Client::Raw(steps) => steps.push(step),
            Client::H2(_) => panic!("an HTTP/2 client has no steps"),
        }
        self
    }

    /// The client reads an answer.
    pub fn answer(self) -> Self {
        self.step(Step::Answer("GET"))
    }

    /// The client reads an answer to a request of this method.
    pub fn answer_to(self, method: &'static str) -> Self {
        self.step(Step::Answer(method))
    }

    /// The client sends more.
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Send(bytes.as_ref().to_vec()))
    }

    /// The client reads until this came.
    pub fn until(self, marker: &'static str) -> Self {
        self.step(Step::Until(marker))
    }

    /// The client reads until the connection ends.
    pub fn end(self) -> Self {
        self.step(Step::End)
    }

    /// The client ends its sending.
    pub fn fin(self) -> Self {
        self.step(Step::Fin)
    }

    /// The client resets the connection.
    pub fn abort(self) -> Self {
        self.step(Step::Abort)
    }

    /// The client raises a flag.
    pub fn tell(self, flag: &'static str) -> Self {
        self.step(Step::Tell(flag))
    }

    /// The client lets time pass, in milliseconds; only where a time limit is what the case is about.
    pub fn pause(self, millis: u64) -> Self {
        self.step(Step::Pause(millis))
    }

    /// The client waits for a flag.
    pub fn wait_for(self, flag: &'static str) -> Self {
        self.step(Step::Await(flag))
    }

    /// What the upstream does on its first connection.
    pub fn upstream(self, plays: Vec<Play>) -> Self {
        self.upstreams(vec![plays])
    }

    /// What the upstream does on its first, second, ... connection.
    pub fn upstreams(mut self, plays: Vec<Vec<Play>>) -> Self {
        self.upstream = Upstream::Raw(plays);
        self
    }

    /// The upstream reads a whole request and answers so.
    pub fn reply(self, bytes: impl AsRef<[u8]>) -> Self {
        self.upstream(vec![Play::Request, send(bytes)])
    }

    /// The upstream speaks HTTP/2.
    pub fn h2_upstream(mut self, answers: Vec<H2Answer>) -> Self {
        self.upstream = Upstream::H2(answers);
        self.cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} }
            }
        });
        self
    }

    /// Nothing listens at the upstream's address.
    pub fn refusing(mut self) -> Self {
        self.upstream = Upstream::Refusing;
        self
    }

    /// Fields of the connection manager.
    pub fn hcm(mut self, fields: Value) -> Self {
        self.hcm = fields;
        self
    }

    /// Fields of the route's action.
    pub fn route(mut self, fields: Value) -> Self {
        self.route = fields;
        self
    }

    /// The virtual host's routes.
    pub fn routes(mut self, routes: Value) -> Self {
        self.routes = Some(routes);
        self
    }

    /// The upstream's connections carry trailers.
    pub fn upstream_trailers(mut self) -> Self {
        self.cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http_protocol_options": { "enable_trailers": true } }
            }
        });
        self
    }

    /// A difference that we want: its name in `differences.yaml`, and what our client or our upstream must have seen.
    pub fn deliberate(mut self, difference: &'static str, ours: &'static str) -> Self {
        self.deliberate = Some((difference, ours));
        self
    }

    /// Our address on the connection to the upstream is not compared in the access log.
    pub fn connects_by_chance(mut self) -> Self {
        self.connects_by_chance = true;
        self
    }

    /// A difference that we want in the access log: its name in `differences.yaml`, and what our line must say.
    pub fn logged(mut self, difference: &'static str, ours: &'static str) -> Self {
        self.logged = Some((difference, ours));
        self
    }
}

/// Writes these bytes.
pub fn send(bytes: impl AsRef<[u8]>) -> Play {
    Play::Send(bytes.as_ref().to_vec())
}
