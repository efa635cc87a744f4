//! What would become of a connection, and of a request on it, that nobody made: who asks what a policy does (`weft authz`)
//! gets the answer of the compiled configuration itself. The filter chain is chosen, the certificate's names are looked at,
//! network filters and HTTP filters are run; no socket is opened and nobody else is asked.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::chain::{self, FilterChain, Seen, TransportProtocol};
use super::config::ListenerConfig;
use super::filters::ListenerFilter;
use crate::codec::RequestHead;
use crate::filters::decide::Step;
use crate::http::decide::Supposition;
use crate::identity::tls::validation::VerifyError;
use crate::io::{ConnectionInfo, DynamicMetadata, Notes};
use crate::network::Terminal;
use crate::router::LocalReply;

/// A connection that nobody made.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// What it dials.
    pub local: SocketAddr,
    /// How it begins TLS; plain text without.
    pub hello: Option<Hello>,
}

/// How a client begins TLS.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// The server name that it asks for, lower case.
    pub server_name: Option<Arc<str>>,
    /// The application protocols that it offers.
    pub application_protocols: Vec<Vec<u8>>,
    /// The certificate that it shows.
    pub certificate: Option<CertificateDer<'static>>,
}

/// What became of it.
#[derive(Debug)]
pub struct Decided {
    /// How it ends.
    pub end: End,
    /// What each filter said that decides, in order.
    pub steps: Vec<Step>,
    /// Its filter chain ends TLS: whoever came is known by a certificate.
    pub secured: bool,
    /// Its filter chain takes requests, rather than bytes.
    pub http: bool,
    /// What filters said of it.
    pub metadata: DynamicMetadata,
}

/// How it ends.
#[derive(Debug)]
pub enum End {
    /// No filter chain takes such a connection: it is closed.
    NoChain,
    /// The handshake fails.
    Handshake(VerifyError),
    /// A network filter closes it, for this reason (Envoy's words).
    Closed(Arc<str>),
    /// Its bytes go to the application.
    Bytes,
    /// It comes to a connection manager, which waits for a request; none was given.
    NoRequest,
    /// It speaks TLS to a connection manager that reads plain text.
    Unreadable,
    /// The request is answered in the application's place.
    Answered(LocalReply),
    /// The request goes to the application, like this.
    Request(Box<RequestHead>),
}

impl ListenerConfig {
    /// Whether an inspector of this sort looks at connections to the port.
    fn looks(&self, port: u16, sees: fn(&ListenerFilter) -> bool) -> bool {
        self.filters.iter().any(|filter| sees(filter) && filter.is_on(port))
    }

    /// How the connection begins TLS, where somebody looks for that: what nobody looks for is not seen.
    fn hello_seen<'a>(&self, caller: &'a Caller) -> Option<&'a Hello> {
        caller.hello.as_ref().filter(|_| self.looks(caller.local.port(), ListenerFilter::sees_tls))
    }

    /// The chain that takes a connection; `http`: it carries requests.
    pub fn chain_for(&self, caller: &Caller, http: bool) -> Option<&Arc<FilterChain>> {
        let hello = self.hello_seen(caller);
        let by_bytes = [b"http/1.1".to_vec()];
        let is_http =
            http && caller.hello.is_none() && self.looks(caller.local.port(), ListenerFilter::sees_http);
        let seen = Seen {
            destination: caller.local,
            source: caller.remote,
            direct_source: caller.remote.ip(),
            transport: if hello.is_some() { TransportProtocol::Tls } else { TransportProtocol::RawBuffer },
            server_name: hello.and_then(|hello| hello.server_name.as_deref()),
            application_protocols: match hello {
                Some(hello) => &hello.application_protocols,
                None if is_http => &by_bytes,
                None => &[],
            },
        };
        chain::choose(&self.chains, &seen).or(self.default_chain.as_ref())
    }

    /// What becomes of a connection, and of this request on it.
    pub async fn decide(&self, caller: &Caller, request: Option<&Supposition>) -> Decided {
        let hello = self.hello_seen(caller);
        let mut decided = Decided {
            end: End::NoChain,
            steps: Vec::new(),
            secured: false,
            http: false,
            metadata: DynamicMetadata::default(),
        };
        let Some(chain) = self.chain_for(caller, request.is_some()) else { return decided };
        let mut info = ConnectionInfo {
            listener: self.name.clone(),
            direction: self.direction,
            filter_chain: chain.name.clone(),
            chain_metadata: chain.metadata.clone(),
            sni: hello.and_then(|hello| hello.server_name.clone()),
            notes: Some(Arc::new(Notes::default())),
            ..ConnectionInfo::between(caller.remote, caller.local)
        };
        decided.http = matches!(chain.network.terminal, Terminal::Http(_));
        match (&chain.tls, &caller.hello) {
            (Some(context), Some(hello)) => match context.suppose(hello.certificate.as_ref()) {
                Ok(tls) => {
                    info.sni = hello.server_name.clone();
                    info.tls = Some(Arc::new(tls));
                    decided.secured = true;
                }
                Err(error) => {
                    decided.end = End::Handshake(error);
                    return decided;
                }
            },
            (Some(_), None) => {
                decided.end = End::Handshake(VerifyError::NoCertificate);
                return decided;
            }
            (None, Some(_)) if decided.http => {
                decided.end = End::Unreadable;
                return decided;
            }
            (None, _) => {}
        }
        let info = Arc::new(info);
        let of_connection = chain.network.decide(&info);
        decided.steps = of_connection.steps;
        if let Some(words) = of_connection.closed {
            decided.end = End::Closed(words);
            return decided;
        }
        decided.end = match (&chain.network.terminal, request) {
            (Terminal::Tcp(_), _) => End::Bytes,
            (Terminal::Http(_), None) => End::NoRequest,
            (Terminal::Http(config), Some(request)) => {
                let of_request = config.decide(&info, request).await;
                decided.steps.extend(of_request.steps);
                decided.metadata = of_request.metadata;
                match (of_request.answer, of_request.head) {
                    (None, Some(head)) => End::Request(Box::new(head)),
                    (answer, _) => End::Answered(answer.unwrap_or_else(|| {
                        LocalReply::new(http::StatusCode::BAD_REQUEST, "", "http1.codec_error")
                    })),
                }
            }
        };
        decided
    }
}
