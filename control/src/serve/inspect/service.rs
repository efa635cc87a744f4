//! The stream that proxies open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds_protos::weft::inspect::v1alpha1::answer::Part;
use xds_protos::weft::inspect::v1alpha1::inspection_service_server::{
    InspectionService, InspectionServiceServer,
};
use xds_protos::weft::inspect::v1alpha1::{Answer, Question};

use super::super::ads::caller;
use super::super::connection::check;
use super::super::proxies::Proxies;
use super::seldom::Seldom;
use super::{Link, Links, Plaintext, is_named_rightly};
use crate::ca::Authenticators;
use crate::render::ProxyNode;

/// A proxy says at once who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often askers that do not read are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// The longest message of a proxy's: a piece of a page, or its node.
const LONGEST: usize = 1024 * 1024;

/// The service. One for each port.
pub struct Inspection {
    proxies: Proxies,
    links: Links,
    /// None on the plaintext port.
    authenticators: Option<Arc<Authenticators>>,
    plaintext: Plaintext,
    refused: Refused,
}

/// Why streams were refused, and how often: proxies come again, and a whole mesh of them may be configured alike.
#[derive(Default)]
struct Refused {
    in_plain_text: Seldom,
    misnamed: Seldom,
    alone: Seldom,
}

impl Inspection {
    /// Enters the streams of `proxies` into `links`. With `authenticators` each must prove who it is; without, those are taken that
    /// `plaintext` says.
    pub fn server(
        proxies: Proxies,
        links: Links,
        authenticators: Option<Arc<Authenticators>>,
        plaintext: Plaintext,
    ) -> InspectionServiceServer<Self> {
        let refused = Refused::default();
        let service = Self { proxies, links, authenticators, plaintext, refused };
        InspectionServiceServer::new(service).max_decoding_message_size(LONGEST)
    }

    /// Whether that is a proxy that is connected by the same connection, as the same.
    fn is_known(&self, id: &str, address: &str, identity: Option<&str>) -> bool {
        let mut known = false;
        self.proxies.each(|proxy| {
            known |= proxy.node.id == id && proxy.address == address && proxy.identity.as_deref() == identity;
        });
        known
    }
}

#[tonic::async_trait]
impl InspectionService for Inspection {
    type InspectStream = ReceiverStream<Result<Question, Status>>;

    async fn inspect(
        &self,
        request: Request<Streaming<Answer>>,
    ) -> Result<Response<Self::InspectStream>, Status> {
        let caller = caller(self.authenticators.as_deref(), &request).await?;
        if self.authenticators.is_none() && !self.plaintext.takes(&caller.address) {
            if let Some(times) = self.refused.in_plain_text.due(Instant::now()) {
                tracing::warn!(from = %caller.address, times, "a stream of answers is refused: it is in plain text from another machine");
            }
            return Err(Status::permission_denied(
                "this connection is in plain text, so nobody knows who answers, and anybody reads it: connect by TLS (15012), or start the \
                 control plane with --inspect-plaintext",
            ));
        }
        let mut answers = request.into_inner();
        let first = tokio::time::timeout(PATIENCE, answers.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the proxy does not say who it is"))??;
        let Some(Part::Node(node)) = first.and_then(|answer| answer.part) else {
            return Err(Status::invalid_argument("the first message says who answers: its node"));
        };
        let node = ProxyNode::parse(&node).map_err(|e| Status::invalid_argument(e.to_string()))?;
        check(&node, caller.identity.as_ref())?;
        // Ids are self-given; the namespace is proven.
        if !is_named_rightly(&node.id, &node.namespace) {
            if let Some(times) = self.refused.misnamed.due(Instant::now()) {
                tracing::warn!(proxy = %node.id, namespace = node.namespace, from = %caller.address, times, "a stream of answers is refused: the proxy's id names another namespace than its own");
            }
            return Err(Status::permission_denied(format!(
                "the name in the id {} must end in .{}, the namespace of the proxy: pages are not asked for under other names",
                node.id, node.namespace
            )));
        }
        let identity = caller.identity.as_ref().map(ToString::to_string);
        // Whoever has the connection of another's xDS stream is that other.
        if !self.is_known(&node.id, &caller.address, identity.as_deref()) {
            if let Some(times) = self.refused.alone.due(Instant::now()) {
                tracing::warn!(proxy = %node.id, from = %caller.address, times, "a stream of answers is refused: it is not beside the proxy's xDS stream");
            }
            return Err(Status::permission_denied(format!(
                "{} has no xDS stream on this connection, and a proxy answers for itself alone",
                node.id
            )));
        }
        let (link, outgoing) = Link::new(node.id.clone(), caller.address);
        let entry = self.links.enter(link.clone());
        tokio::spawn(async move {
            // Taken out with the task's end.
            let _entry = entry;
            let mut look = tokio::time::interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let heard = tokio::select! {
                    heard = answers.message() => heard,
                    // Most of the time a proxy is asked nothing.
                    _ = look.tick(), if link.is_busy() => {
                        link.cut_off(Instant::now());
                        continue;
                    }
                    () = link.until_ended() => return,
                };
                let Ok(Some(answer)) = heard else { return };
                if let Err(wrong) = link.hear(answer) {
                    tracing::warn!(proxy = link.id(), wrong, "a stream of answers is ended");
                    link.refuse(wrong);
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
