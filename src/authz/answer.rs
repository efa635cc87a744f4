//! What the proxy decided, in words and for programs: the verdict, and the rule of the policy that made it.

use serde::Serialize;
use weft_control::model::authorization_policy::AuthorizationAction;
use weft_control::model::{EffectivePeerMode, Meta};
use weft_proxy::filters::decide::{Said, Step};
use weft_proxy::filters::rbac::{Action, Finding};
use weft_proxy::identity::tls::validation::VerifyError;
use weft_proxy::listen::decide::{Decided, End};

use super::{Judge, Question};

/// How the names begin of rules that have a provider asked, and end where it cannot be asked.
const ASKED: &str = "istio-ext-authz-";
const CANNOT_BE_ASKED: &str = "-deny-due-to-bad-CUSTOM-action";

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It comes to the application.
    Allow,
    /// It does not.
    Deny,
    /// Somebody else is asked, and says yes or no.
    Ask,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The policy's kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it does: ALLOW, DENY, AUDIT, CUSTOM; a mode of PeerAuthentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The rule's place, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// Where the policy was written.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}

impl Rule {
    fn of(meta: &Meta, action: Option<&str>, rule: Option<usize>) -> Self {
        Self {
            kind: meta.kind.as_str(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            action: action.map(str::to_owned),
            rule,
            file: meta.source.file.to_string(),
            line: meta.source.line,
        }
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(rule) = self.rule {
            write!(f, "rule {rule} of ")?;
        }
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        if let Some(action) = &self.action {
            write!(f, " ({action})")?;
        }
        write!(f, ", {}:{}", self.file, self.line)
    }
}

/// What was decided and why.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The verdict.
    pub decision: Decision,
    /// The rule that decided; none where no rule did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Rule>,
    /// Why, in a sentence.
    pub reason: String,
    /// The workload, as NAMESPACE/NAME.
    pub workload: String,
    /// Its port.
    pub port: u16,
    /// HTTP or TCP.
    pub protocol: &'static str,
    /// The caller's identity as the proxy sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The status of the answer to a request that is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What the proxy's access log says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
    /// The provider that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The rules that note it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audited_by: Vec<Rule>,
    /// What policies that are only tried (istio.io/dry-run) would have done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<String>,
    /// What else is worth knowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Judge {
    /// What the proxy decides, and why.
    ///
    /// # Errors
    /// There is no such port, it takes requests and none is given, or the identity cannot be put into a certificate.
    pub fn answer(&self, port: u16, question: &Question) -> anyhow::Result<Answer> {
        let decided = self.decide(port, question)?;
        if matches!(decided.end, End::NoRequest) {
            anyhow::bail!("port {port} takes HTTP requests: say which, such as GET /path");
        }
        Ok(self.explain(port, question, &decided))
    }

    /// What was decided about a question, in words.
    pub fn explain(&self, port: u16, question: &Question, decided: &Decided) -> Answer {
        let meta = &self.workload.meta;
        // Without a filter chain a port is what it is asked for.
        let unsorted = matches!(decided.end, End::NoChain);
        let mut answer = Answer {
            decision: Decision::Deny,
            by: None,
            reason: String::new(),
            workload: format!("{}/{}", meta.namespace, meta.name),
            port,
            protocol: if decided.http || (unsorted && question.request.is_some()) { "HTTP" } else { "TCP" },
            identity: question.identity.clone().filter(|_| decided.secured),
            status: None,
            details: None,
            provider: None,
            audited_by: Vec::new(),
            tried: Vec::new(),
            notes: Vec::new(),
        };
        self.verdict(&mut answer, decided, port, question);
        for (index, step) in decided.steps.iter().enumerate() {
            // Rules that say whom to ask stand before the filter that asks, as if they were tried.
            let mark = decided.steps.get(index + 1).is_some_and(|next| next.filter.ends_with("ext_authz"));
            self.beside(&mut answer, step, mark);
        }
        let passes = matches!(decided.end, End::Request(_) | End::Bytes);
        if question.identity.is_some() && !decided.secured && (passes || !decided.steps.is_empty()) {
            let note = "the port takes plain text here: the caller's identity is not seen";
            answer.notes.push(note.to_owned());
        }
        if question.request.is_some() && matches!(decided.end, End::Bytes | End::Closed(_)) {
            answer.notes.push("the port carries bytes: what is requested plays no part".to_owned());
        }
        answer
    }

    fn verdict(&self, answer: &mut Answer, decided: &Decided, port: u16, question: &Question) {
        match &decided.end {
            End::Request(_) | End::Bytes | End::NoRequest => self.passes(answer, &decided.steps),
            End::NoChain | End::Handshake(_) => self.unsecured(answer, &decided.end, port, question),
            End::Unreadable => {
                "the port takes plain text, and this is TLS".clone_into(&mut answer.reason);
            }
            End::Closed(words) => {
                answer.details = Some(words.to_string());
                self.refused(answer, &decided.steps, words);
            }
            End::Answered(reply) => {
                answer.status = Some(reply.status.as_u16());
                answer.details = Some(reply.details.to_string());
                self.refused(answer, &decided.steps, &reply.details);
            }
        }
    }

    /// It comes to the application, unless somebody else says no.
    fn passes(&self, answer: &mut Answer, steps: &[Step]) {
        answer.decision = Decision::Allow;
        let allows = |step: &&Step| step.found.as_ref().is_some_and(|found| found.action == Action::Allow);
        match steps.iter().rev().find(allows) {
            Some(step) => {
                answer.by = step.found.as_ref().and_then(|found| self.rule(found.policy.as_deref()?));
                "it matches a rule that allows it".clone_into(&mut answer.reason);
            }
            None => {
                "no ALLOW policy holds for the workload: whatever no policy denies is allowed"
                    .clone_into(&mut answer.reason);
            }
        }
        let Some(at) = steps.iter().position(|step| step.said == Said::Ask) else { return };
        answer.decision = Decision::Ask;
        // The rules before it say whom to ask.
        let found = steps[..at]
            .iter()
            .rev()
            .find_map(|step| step.tried.as_ref()?.policy.as_deref().filter(|name| name.starts_with(ASKED)));
        answer.by = found.and_then(|name| self.rule(name));
        answer.provider = found.and_then(provider_of).map(str::to_owned);
        answer.reason = format!(
            "not decided here: the provider {} is asked; the other policies let it pass",
            answer.provider.as_deref().unwrap_or("of a CUSTOM policy")
        );
    }

    /// It has no filter chain, or its handshake fails.
    fn unsecured(&self, answer: &mut Answer, end: &End, port: u16, question: &Question) {
        let meta = &self.workload.meta;
        let (mode, policy) = self.world.peer_policy(&meta.namespace, self.workload.labels(), Some(port));
        let mesh = self.world.mesh();
        answer.reason = match end {
            End::Handshake(VerifyError::San(names)) => {
                let aliases = match mesh.trust_domain_aliases.as_slice() {
                    [] => String::new(),
                    aliases => format!(" (and its aliases {})", aliases.join(", ")),
                };
                format!(
                    "the handshake fails: {names} is of no trust domain that the mesh takes; that is {}{aliases}",
                    mesh.trust_domain
                )
            }
            End::Handshake(error) if !matches!(error, VerifyError::NoCertificate) => {
                format!("the handshake fails: {error}")
            }
            _ if mode == EffectivePeerMode::Strict
                && !self.workload.is_gateway()
                && question.identity.is_none() =>
            {
                answer.by = policy.map(|policy| Rule::of(&policy.meta, Some("STRICT"), None));
                "the port takes mutual TLS only, and the caller shows no identity: the connection is closed"
                    .to_owned()
            }
            End::Handshake(_) => {
                "the port asks for a client certificate, and the caller shows none: the handshake fails"
                    .to_owned()
            }
            _ => "no filter chain of the port takes such a connection; for TLS at a gateway say --sni NAME"
                .to_owned(),
        };
    }

    /// A filter refused it.
    fn refused(&self, answer: &mut Answer, steps: &[Step], words: &str) {
        if words.starts_with("rbac_access_denied_matched_policy[") {
            let last = steps.last().and_then(|step| step.found.as_ref());
            match last.and_then(|found| found.policy.as_deref()) {
                Some(name) => {
                    answer.by = self.rule(name);
                    answer.reason = match provider_of(name).filter(|_| name.ends_with(CANNOT_BE_ASKED)) {
                        Some(provider) => format!(
                            "the provider {provider} cannot be asked: check extensionProviders and its service, and that the workload has one provider only"
                        ),
                        None => "it matches a rule that denies it".to_owned(),
                    };
                }
                None => {
                    let policies = self.allowing();
                    answer.reason = format!(
                        "no rule matches of the ALLOW policies that hold for the workload: {}",
                        if policies.is_empty() {
                            "they have no rules".to_owned()
                        } else {
                            policies.join("; ")
                        }
                    );
                }
            }
            return;
        }
        if let Some(inner) = words.strip_prefix("jwt_authn_access_denied{") {
            let inner = inner.trim_end_matches('}').replace('_', " ");
            answer.reason = format!("its token is refused: {inner}; {}", self.token_rules().join("; "));
            return;
        }
        answer.reason = format!("the request is refused before any policy: {words}");
    }

    /// What else policies do with it.
    fn beside(&self, answer: &mut Answer, step: &Step, mark: bool) {
        if let Some(Finding { action: Action::Log, policy: Some(policy), .. }) = &step.found {
            answer.audited_by.extend(self.rule(policy));
        }
        let Some(tried) = step.tried.as_ref().filter(|_| !mark) else { return };
        let does = if tried.allowed { "would allow it" } else { "would deny it" };
        match tried.policy.as_deref().and_then(|name| self.rule(name)) {
            Some(rule) => answer.tried.push(format!("{rule} {does}")),
            None if tried.action == Action::Allow => {
                answer
                    .tried
                    .push("the ALLOW policies that are tried would deny it: no rule matches".to_owned());
            }
            None => {}
        }
    }

    fn policies(
        &self,
        action: AuthorizationAction,
    ) -> Vec<&std::sync::Arc<weft_control::model::Object<weft_control::model::AuthorizationPolicy>>> {
        {
            let meta = &self.workload.meta;
            self.world.authorization_policies(
                &meta.namespace,
                self.workload.labels(),
                Some(&meta.name),
                action,
            )
        }
    }

    /// The ALLOW policies that are enforced.
    fn allowing(&self) -> Vec<String> {
        let allow = self.policies(AuthorizationAction::Allow);
        let enforced = allow.into_iter().filter(|policy| !policy.is_tried());
        enforced.map(|policy| Rule::of(&policy.meta, None, None).to_string()).collect()
    }

    fn token_rules(&self) -> Vec<String> {
        let root = self.world.mesh().root_namespace.as_str();
        let here = |meta: &Meta| meta.namespace == root || meta.namespace == self.workload.meta.namespace;
        let holds = self.world.request_authentications().iter().filter(|object| {
            here(&object.meta) && object.spec.applies(&self.workload.meta.namespace, self.workload.labels())
        });
        holds.map(|object| Rule::of(&object.meta, None, None).to_string()).collect()
    }

    /// The rule that has this name in the proxy's configuration.
    pub(super) fn rule(&self, name: &str) -> Option<Rule> {
        let name = name.strip_suffix(CANNOT_BE_ASKED).unwrap_or(name);
        let (_, rest) = name.split_once("ns[")?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (policy, rest) = rest.split_once("]-rule[")?;
        let rule = rest.strip_suffix(']')?.parse().ok()?;
        let all = self.world.all_authorization_policies();
        let found = all.iter().find(|p| p.meta.namespace == namespace && p.meta.name == policy)?;
        Some(Rule::of(&found.meta, Some(found.spec.action.as_str()), Some(rule)))
    }
}

/// The provider in the name of a rule that has it asked.
fn provider_of(name: &str) -> Option<&str> {
    name.strip_prefix(ASKED)?.split_once("-ns[").map(|(provider, _)| provider)
}
