//! What would become of a request that nobody sent, as far as its filters have a say: the bytes are read by the connection's
//! codec, brought into shape as every request is, and shown to the filters ([`crate::filters::decide`]).

use std::rc::Rc;
use std::sync::Arc;

use super::exchange::{record, remove_internal_only};
use super::{ConnectionManager, HcmConfig, request};
use crate::codec::{Body, RequestHead, h1};
use crate::filters::decide::{Step, Supposed};
use crate::io::{ConnectionInfo, DynamicMetadata};
use crate::route::{Asked, Matched};
use crate::router::{Exchange, Flow, LocalReply, Scratch};

/// A request that nobody sent.
#[derive(Clone, Debug)]
pub struct Supposition {
    /// Its head as HTTP/1.1 writes it, the empty line at the end included.
    pub head: Vec<u8>,
    /// What is taken for granted of its token, in place of looking for one.
    pub token: Option<Supposed>,
}

/// What became of it.
#[derive(Debug)]
pub struct Decided {
    /// What each filter said, in order.
    pub steps: Vec<Step>,
    /// The answer in place of the upstream's, if there is one.
    pub answer: Option<LocalReply>,
    /// The request as it goes on; none where it could not be read.
    pub head: Option<RequestHead>,
    /// What filters said of it.
    pub metadata: DynamicMetadata,
}

impl HcmConfig {
    /// What becomes of a request on this connection.
    pub async fn decide(
        self: &Arc<Self>,
        connection: &Arc<ConnectionInfo>,
        supposition: &Supposition,
    ) -> Decided {
        let refused = |answer, head| Decided {
            steps: Vec::new(),
            answer: Some(answer),
            head,
            metadata: DynamicMetadata::default(),
        };
        let options = self.h1_options(connection.tls.is_some()).h1;
        let mut head = match h1::read_head(&supposition.head, &options, connection.tls.is_some()) {
            Ok(head) => head,
            Err((status, details)) => return refused(LocalReply::new(status, "", details), None),
        };
        let flow = Rc::new(Flow::new(record(&head)));
        let origin = match request::shape(&mut head, self, connection) {
            Ok(origin) => origin,
            Err(reply) => return refused(reply, Some(head)),
        };
        let manager = ConnectionManager::new(self.clone(), connection.clone(), None);
        manager.shared().client_cert(&mut head.headers);
        if origin.client != connection.remote.ip() {
            flow.info(|info| info.client = Some((origin.client, 0).into()));
        }
        let routes = self.route_config();
        if let (Some(routes), false) = (&routes, origin.internal) {
            remove_internal_only(routes, &mut head);
        }
        let mut exchange = Box::new(Exchange {
            head,
            body: Body::Empty,
            matched: None,
            flow: flow.clone(),
            connection: connection.clone(),
            // The middle of what chance could say.
            random: u64::MAX / 2,
            scratch: Scratch::default(),
            informational: None,
        });
        let (secure, internal, tls) = (origin.secure, origin.internal, connection.tls.as_deref());
        let reroute = |exchange: &mut Exchange| {
            let (head, random) = (&exchange.head, exchange.random);
            exchange.matched = routes.as_ref().and_then(|routes| {
                flow.info(|info| {
                    let (metadata, client) = (Some(&info.metadata), info.client.unwrap_or(connection.remote));
                    let client = Some(client.ip());
                    Matched::find(routes, &Asked { head, random, secure, internal, tls, metadata, client })
                        .ok()
                })
            });
        };
        reroute(&mut exchange);
        let decided = self.filters.decide(exchange, reroute, supposition.token.as_ref()).await;
        let metadata = flow.info(|info| std::mem::take(&mut info.metadata));
        Decided {
            steps: decided.steps,
            answer: decided.answer,
            head: Some(decided.exchange.head.clone()),
            metadata,
        }
    }
}
