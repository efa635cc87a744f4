//! Objects of the Gateway API that are refused as they are: whose they are, and how they stand.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::Value;

use super::standing::{Condition, ParentStanding, Standing, Standings};
use crate::model::gateway_api::{CONTROLLER, ParentRef};
use crate::model::meta::{Kind, ObjectKey};
use crate::model::world::Objects;

/// What an object says of whose it is, as far as that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::ingest) struct Refused {
    parents: Vec<ParentRef>,
    class: String,
    /// The controller of a class.
    controller: String,
    /// It asks for parameters, of which there are none.
    parameters: bool,
}

impl Refused {
    /// Reads a specification that may be wrong elsewhere.
    pub(in crate::ingest) fn read(spec: &Value) -> Self {
        let parents = spec["parentRefs"].as_array().into_iter().flatten();
        Self {
            parents: parents.filter_map(|one| serde_json::from_value(one.clone()).ok()).collect(),
            class: spec["gatewayClassName"].as_str().unwrap_or_default().to_owned(),
            controller: spec["controllerName"].as_str().unwrap_or_default().to_owned(),
            parameters: !(spec["infrastructure"]["parametersRef"].is_null()
                && spec["parametersRef"].is_null()),
        }
    }

    /// Whose a Gateway is, it says whatever else is wrong with it: what it said when it was right is of its class of now.
    pub(in crate::ingest) fn claim(&self, good: &mut Objects) {
        for gateway in &mut good.api_gateways {
            if self.class.is_empty() || gateway.spec.gateway_class_name == self.class {
                continue;
            }
            let gateway = Arc::make_mut(gateway);
            gateway.spec.gateway_class_name.clone_from(&self.class);
            let mut hasher = DefaultHasher::new();
            (gateway.meta.version, &self.class).hash(&mut hasher);
            gateway.meta.version = hasher.finish();
        }
    }

    /// How it stands, if it is ours; `earlier` is how its last good version does, which stays in force.
    pub(in crate::ingest) fn standing(
        &self,
        kind: Kind,
        namespace: &str,
        earlier: Option<&Standing>,
        standings: &Standings,
        message: &str,
    ) -> Option<Standing> {
        let stays = match earlier {
            Some(_) => "; the last version that was right stays in force",
            None => "",
        };
        let message = format!("{message}{stays}");
        match kind {
            Kind::GatewayClass => {
                let reason = if self.parameters { "InvalidParameters" } else { "Unsupported" };
                let accepted = || Standing::Class(vec![Condition::fails("Accepted", reason, message)]);
                (self.controller == CONTROLLER).then(accepted)
            }
            Kind::ApiGateway => {
                let class = ObjectKey {
                    kind: Kind::GatewayClass,
                    namespace: "default".to_owned(),
                    name: self.class.clone(),
                };
                standings.get(&class)?;
                let reason = if self.parameters { "InvalidParameters" } else { "Invalid" };
                let accepted = Condition::fails("Accepted", reason, message);
                let (mut conditions, listeners, addresses) = match earlier {
                    Some(Standing::Gateway { conditions, listeners, addresses }) => {
                        (conditions.clone(), listeners.clone(), addresses.clone())
                    }
                    _ => {
                        let programmed =
                            Condition::fails("Programmed", "Invalid", "no version of it is in force");
                        (vec![programmed], Vec::new(), Vec::new())
                    }
                };
                conditions.retain(|condition| condition.kind != "Accepted");
                conditions.insert(0, accepted);
                Some(Standing::Gateway { conditions, listeners, addresses })
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute => {
                let ours = |parent: &&ParentRef| {
                    let place = parent.namespace.as_deref().unwrap_or(namespace);
                    let gateway = ObjectKey {
                        kind: Kind::ApiGateway,
                        namespace: place.to_owned(),
                        name: parent.name.clone(),
                    };
                    parent.is_service() || (parent.is_gateway() && standings.contains_key(&gateway))
                };
                let parents: Vec<_> = self
                    .parents
                    .iter()
                    .filter(ours)
                    .map(|parent| ParentStanding {
                        parent: parent.clone(),
                        conditions: vec![Condition::fails("Accepted", "UnsupportedValue", message.as_str())],
                    })
                    .collect();
                (!parents.is_empty()).then_some(Standing::Route(parents))
            }
            _ => None,
        }
    }
}

/// Whether an entry of a route's status is ours.
pub(in crate::ingest) fn is_ours(parent: &Value) -> bool {
    parent["controllerName"] == CONTROLLER
}
