//! `weft explain`: what would become of a request that nobody has sent, in the order in which it would happen. The proxies that it
//! would pass decide by their own code (see [`crate::test`] and [`crate::authz`]); here their decisions are put behind each other,
//! and each is led back to the object that it comes from. [`seen`] explains requests that were sent, by what proxies have kept.

pub mod seen;
pub(crate) mod text;

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use weft_control::model::meta::Meta;
use weft_control::model::networks::NetworkGateway;
use weft_control::model::{Workload, World};

use crate::authz::{Answer, Decision, Judge, Question, Request, identity, workload};
use crate::test::Case;

pub use text::text;

/// As many endpoints of a destination as are asked whether they let the request in.
const ASKED: usize = 20;

/// A request, or a connection, that is imagined.
#[derive(Clone, Debug)]
pub struct Imagined {
    /// The workload that sends it, or the gateway that it comes to.
    pub from: String,
    /// What is sent; `from` of it is not looked at.
    pub case: Case,
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Kind, namespace and name.
    pub object: String,
    /// File and line; or the cluster.
    pub at: String,
}

impl Origin {
    fn of(meta: &Meta) -> Self {
        Self { object: meta.key().to_string(), at: meta.source.to_string() }
    }
}

/// The way out of the first proxy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// What the proxy finds.
    pub found: Value,
    /// Where its routing rules were written, if there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Origin>,
}

/// A place where it may arrive.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// The workload's address and port.
    pub address: String,
    /// The workload; none where no proxy of the mesh stands before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// What its proxy decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Why nobody is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unasked: Option<String>,
}

/// A destination with all that it comes from, and its arrivals.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// What the first proxy has of it.
    pub found: Value,
    /// The service, and the DestinationRule by which it is spoken to.
    pub origins: Vec<Origin>,
    /// Its endpoints.
    pub arrivals: Vec<Arrival>,
    /// So many more were not asked.
    pub more: usize,
}

/// The whole.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was imagined.
    pub asked: String,
    /// The workload or gateway whose proxy it meets first, as NAMESPACE/NAME.
    pub from: String,
    /// That is a gateway.
    pub gateway: bool,
    /// The identity that the first proxy shows.
    pub identity: String,
    /// What a gateway's own policies say; sidecars let their own workload do what it wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admitted: Option<Answer>,
    /// The way that it takes.
    pub way: Way,
    /// Where that leads.
    pub destinations: Vec<Destination>,
}

impl Explanation {
    /// Whether it can arrive: something takes it, and not everybody who is asked refuses it.
    pub fn arrives(&self) -> bool {
        let refuses = |answer: &Option<Answer>| answer.as_ref().is_some_and(|a| a.decision == Decision::Deny);
        if refuses(&self.admitted) || !self.way.found["refused"].is_null() {
            return false;
        }
        if !self.way.found["status"].is_null() {
            return self.way.found["status"].as_u64().is_some_and(|status| status < 400);
        }
        self.destinations.iter().any(|d| d.arrivals.iter().any(|a| !refuses(&a.answer)))
    }
}

/// Explains it.
///
/// # Errors
/// The workload is not known, what is asked cannot be read, or a proxy does not take its configuration.
pub fn explain(world: &World, imagined: &Imagined) -> anyhow::Result<Explanation> {
    let world = &world.with_gateways_as_written();
    let sender = workload(world, &imagined.from)?;
    let gateway = sender.is_gateway();
    let own = format!("{}/{}", sender.meta.namespace, sender.meta.name);
    let case = Case { from: Some(own.clone()), to: None, ..imagined.case.clone() };
    let found = crate::test::found(world, &case)?;
    let account = format!("{}/{}", sender.meta.namespace, sender.service_account());
    let shown = identity(world, &account, true)?;
    let admitted = if gateway { admitted(world, &sender, &case)? } else { None };
    let (namespace, labels) = (sender.meta.namespace.as_str(), sender.labels());
    let mut destinations = Vec::new();
    for one in found["destinations"].as_array().into_iter().flatten() {
        let mut origins = Vec::new();
        let service = one["host"].as_str().and_then(|host| world.service(host, namespace));
        if let Some(service) = service {
            origins.push(Origin::of(&service.meta));
            let rule = world.destination_rule(namespace, labels, service);
            origins.extend(rule.map(|rule| Origin::of(&rule.meta)));
        }
        let endpoints = one["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let arrivals = endpoints
            .iter()
            .take(ASKED)
            .map(|endpoint| arrival(world, endpoint, &case, &found, (&shown, sender.address())))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let more = endpoints.len().saturating_sub(ASKED);
        destinations.push(Destination { found: one.clone(), origins, arrivals, more });
    }
    let rules = found["rules"].as_str().and_then(|name| {
        let all = world.virtual_services().iter();
        let mut of = all.filter(|v| format!("{}/{}", v.meta.namespace, v.meta.name) == name);
        of.next().map(|v| Origin::of(&v.meta))
    });
    let asked = match (&case.request, &case.connect) {
        (Some(request), _) => request.clone(),
        (None, Some(to)) => format!("a connection to {to}"),
        (None, None) => "a connection".to_owned(),
    };
    Ok(Explanation {
        asked,
        from: own,
        gateway,
        identity: shown,
        admitted,
        way: Way { found, rules },
        destinations,
    })
}

/// The request as a workload's proxy gets it from the first one.
fn request(case: &Case, found: &Value) -> anyhow::Result<Option<Request>> {
    let Some(asked) = case.asked()? else { return Ok(None) };
    let given = |key: &str, own: &str| found[key].as_str().unwrap_or(own).to_owned();
    let headers = case.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host"));
    Ok(Some(Request {
        method: asked.method.to_owned(),
        path: given("path", asked.path),
        host: given("host", asked.authority),
        headers: headers.map(|(name, value)| (name.clone(), value.clone())).collect(),
        token: None,
    }))
}

/// What a gateway's own policies say of a request from outside.
fn admitted(world: &World, gateway: &Arc<Workload>, case: &Case) -> anyhow::Result<Option<Answer>> {
    let Some(asked) = case.asked()? else { return Ok(None) };
    let judge = Judge::new(world, gateway)?;
    if !judge.ports().contains(&asked.port) {
        return Ok(None);
    }
    let server_name = case.sni.clone().or_else(|| asked.secure.then(|| asked.host.to_owned()));
    let question =
        Question { identity: None, from: None, server_name, request: request(case, &Value::Null)? };
    judge.answer(asked.port, &question).map(Some)
}

/// The network of which a gateway is at this address and port, or at this name.
fn network_behind<'a>(world: &'a World, at: &str) -> Option<&'a str> {
    let (address, port) = at.rsplit_once(':')?;
    let (address, port) = (address.trim_matches(['[', ']']), port.parse::<u16>().ok()?);
    let is_here =
        |gateways: &[NetworkGateway]| gateways.iter().any(|g| g.port == port && g.address == address);
    let mut all = world.networks().with_gateways();
    all.find(|(_, gateways)| is_here(gateways)).map(|(network, _)| network.as_str())
}

/// Whether the workload at an endpoint lets it in.
fn arrival(
    world: &World,
    endpoint: &Value,
    case: &Case,
    found: &Value,
    (sender, from): (&str, &str),
) -> anyhow::Result<Arrival> {
    let address = endpoint["address"].as_str().unwrap_or_default().to_owned();
    let mut arrival = Arrival { address, workload: None, answer: None, unasked: None };
    let place: Result<SocketAddr, _> = arrival.address.parse();
    if let Some(network) = network_behind(world, &arrival.address) {
        let named =
            if place.is_err() { ", at the addresses that the control plane finds for its name" } else { "" };
        arrival.unasked = Some(format!(
            "a gateway of the network {network}{named} passes the TLS on: what is behind it decides"
        ));
        return Ok(arrival);
    }
    let there = place.ok().and_then(|at| Some((at, world.workload_at(&at.ip().to_string())?)));
    let Some((at, target)) = there else {
        arrival.unasked = Some("no workload of the mesh: what answers there decides".to_owned());
        return Ok(arrival);
    };
    arrival.workload = Some(format!("{}/{}", target.meta.namespace, target.meta.name));
    if !target.shows_identity() {
        arrival.unasked = Some("it has no proxy: what answers there decides".to_owned());
        return Ok(arrival);
    }
    let judge = Judge::new(world, target)?;
    if !judge.ports().contains(&at.port()) {
        arrival.unasked = Some(format!("its proxy has no listener of its own for port {}", at.port()));
        return Ok(arrival);
    }
    let mutual = endpoint["tls"] == "istio-mutual";
    let shown = mutual.then(|| sender.to_owned());
    let question = Question {
        identity: shown,
        from: from.parse().ok(),
        server_name: None,
        request: request(case, found)?,
    };
    arrival.answer = Some(judge.answer(at.port(), &question)?);
    Ok(arrival)
}
