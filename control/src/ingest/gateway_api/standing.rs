//! How objects of the Gateway API stand: the conditions of its specification, before anybody writes them down.

use std::collections::BTreeMap;

use crate::model::ObjectKey;
use crate::model::gateway_api::ParentRef;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Its type.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// Why, in the specification's words.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Condition {
    pub(super) fn holds(kind: &'static str, reason: &'static str) -> Self {
        Self { kind, holds: true, reason, message: String::new() }
    }

    pub(super) fn fails(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: false, reason, message: message.into() }
    }

    /// The same with more to say for people.
    pub(super) fn with(mut self, more: &str) -> Self {
        if !self.message.is_empty() && !more.is_empty() {
            self.message.push('\n');
        }
        self.message.push_str(more);
        self
    }
}

/// How a listener of a Gateway stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenerStanding {
    /// Its name.
    pub name: String,
    /// The kinds of routes that may attach.
    pub kinds: Vec<&'static str>,
    /// How many routes have.
    pub attached: usize,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// How a route stands with one parent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParentStanding {
    /// The parent, as the route names it.
    pub parent: ParentRef,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// Where clients find a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An address of IP.
    Ip(String),
    /// A name.
    Host(String),
}

/// How an object stands. What is for other controllers has no standing here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// A GatewayClass.
    Class(Vec<Condition>),
    /// A Gateway.
    Gateway {
        /// Of the Gateway as a whole.
        conditions: Vec<Condition>,
        /// Of its listeners.
        listeners: Vec<ListenerStanding>,
        /// Where clients find it: at load balancers, or at the Services in front of it.
        addresses: Vec<Address>,
    },
    /// A route; for its parents that are ours.
    Route(Vec<ParentStanding>),
}

impl Standing {
    /// How a Gateway stands for which something cannot be made; `passes` is what will go away by itself.
    #[must_use]
    pub fn hindered(&self, reason: &'static str, message: &str, passes: bool) -> Self {
        let mut all = self.clone();
        let Self::Gateway { conditions, .. } = &mut all else { return all };
        for programmed in conditions.iter_mut().filter(|condition| condition.kind == "Programmed") {
            match (programmed.holds, programmed.reason) {
                // What was made before goes on.
                (true, _) if passes => {}
                // They follow from it.
                (true, _) | (false, "NoResources" | "AddressNotAssigned") => {
                    *programmed = Condition::fails("Programmed", reason, message);
                }
                _ => *programmed = programmed.clone().with(message),
            }
        }
        all
    }
}

/// How each object stands.
pub type Standings = BTreeMap<ObjectKey, Standing>;
