//! Questions and answers as messages: what applications send, what they get.

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::cache::Question;
use super::table::Found;

/// How long an application may remember a name of the mesh, in seconds (as Istio's agent has it): not long, so that it follows.
const TTL: u32 = 30;
/// The least that a datagram may have (RFC 1035).
const LEAST: usize = 512;
/// The most that we send in a datagram, whatever an application takes.
const MOST: usize = 4096;
/// What we take in a datagram: what passes nearly everywhere without fragments (DNS flag day 2020).
pub(super) const PAYLOAD: u16 = 1232;
/// Options that are between two neighbours (RFC 7873, 7828, 7830): cookies, keep-alive, padding.
const NEIGHBOURS: [u16; 3] = [10, 11, 12];

/// By what a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// In a datagram.
    Udp,
    /// On a stream.
    Tcp,
}

/// What an application has sent.
#[derive(Debug)]
pub(super) enum Request {
    /// A question that can be answered.
    Query(Box<Query>),
    /// One that cannot: the answer.
    Refused(Message),
    /// Nothing that deserves an answer.
    Nothing,
}

/// A question.
#[derive(Debug)]
pub(super) struct Query {
    /// The message.
    message: Message,
    /// What is asked.
    pub(super) question: Question,
    /// Options for whoever answers; an answer that depends on them is this application's alone.
    pub(super) options: Vec<(EdnsCode, EdnsOption)>,
}

/// Reads a message.
pub(super) fn read(bytes: &[u8]) -> Request {
    let Ok(message) = Message::from_vec(bytes) else {
        // An answer to what cannot be read could be the beginning of a conversation of two machines.
        let is_query = bytes.len() >= 12 && bytes[2] & 0x80 == 0;
        if !is_query {
            return Request::Nothing;
        }
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        return Request::Refused(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    if message.metadata.message_type == MessageType::Response {
        return Request::Nothing;
    }
    let refuse = |code| Request::Refused(respond(&message, code));
    if message.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(ResponseCode::BADVERS);
    }
    if query.query_class != DNSClass::IN || matches!(query.query_type, RecordType::AXFR | RecordType::IXFR) {
        return refuse(ResponseCode::Refused);
    }
    let edns = message.edns.as_ref();
    let question = Question {
        name: query.name.clone(),
        kind: query.query_type,
        dnssec: edns.is_some_and(|edns| edns.flags().dnssec_ok),
        unchecked: message.metadata.checking_disabled,
    };
    let options = edns.map(|edns| edns.options().options.clone()).unwrap_or_default();
    let options = options.into_iter().filter(|(code, _)| !NEIGHBOURS.contains(&u16::from(*code))).collect();
    Request::Query(Box::new(Query { message, question, options }))
}

/// The beginning of an answer: no records yet.
fn respond(request: &Message, code: ResponseCode) -> Message {
    let asked = &request.metadata;
    let mut response = Message::response(asked.id, asked.op_code);
    response.metadata.recursion_desired = asked.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.checking_disabled = asked.checking_disabled;
    response.metadata.response_code = code;
    response.add_queries(request.queries.iter().cloned());
    if let Some(edns) = &request.edns {
        let mut own = Edns::new();
        own.set_max_payload(PAYLOAD).set_dnssec_ok(edns.flags().dnssec_ok);
        response.set_edns(own);
    }
    response
}

impl Query {
    /// An answer with a code, and no records yet.
    pub(super) fn respond(&self, code: ResponseCode) -> Message {
        respond(&self.message, code)
    }

    /// Whether the application wants to hear that signatures were checked.
    pub(super) fn wants_authentic(&self) -> bool {
        self.message.metadata.authentic_data || self.question.dnssec
    }

    /// The answer for a name of the mesh: its addresses of the type that is asked for, or none, in an order of their own.
    pub(super) fn local(&self, found: &Found) -> Message {
        let mut response = self.respond(ResponseCode::NoError);
        response.metadata.authoritative = true;
        let asked = &self.question;
        let (v4, v6) = match asked.kind {
            RecordType::A => (true, false),
            RecordType::AAAA => (false, true),
            RecordType::ANY => (true, true),
            _ => (false, false),
        };
        let mut ips: Vec<IpAddr> = Vec::new();
        if v4 {
            ips.extend(found.addresses.v4.iter().copied().map(IpAddr::from));
        }
        if v6 {
            ips.extend(found.addresses.v6.iter().copied().map(IpAddr::from));
        }
        fastrand::shuffle(&mut ips);
        let owner = found.alias.as_ref().unwrap_or(&asked.name);
        if let Some(alias) = &found.alias
            && (!ips.is_empty() || asked.kind == RecordType::CNAME)
        {
            response.add_answer(record(&asked.name, RData::CNAME(CNAME(alias.clone()))));
        }
        for ip in ips {
            let data = match ip {
                IpAddr::V4(ip) => RData::A(A(ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
            };
            response.add_answer(record(owner, data));
        }
        response
    }

    /// The bytes of an answer. Where they do not fit, as many answers go as do, and the application is told to ask by TCP.
    pub(super) fn encode(&self, response: Message, transport: Transport) -> Result<Vec<u8>, ProtoError> {
        let limit = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let said = self.message.edns.as_ref().map_or(0, |edns| usize::from(edns.max_payload()));
                said.clamp(LEAST, MOST)
            }
        };
        fit(response, limit)
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn fit(mut response: Message, limit: usize) -> Result<Vec<u8>, ProtoError> {
    let bytes = response.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    // What may be left out without a word goes first.
    response.additionals.clear();
    let bytes = response.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    response.authorities.clear();
    response.metadata.truncation = true;
    let (mut fits, mut too_many) = (0, response.answers.len() + 1);
    let all = std::mem::take(&mut response.answers);
    while too_many - fits > 1 {
        let tried = fits.midpoint(too_many);
        response.answers = all[..tried].to_vec();
        match response.to_vec()?.len() <= limit {
            true => fits = tried,
            false => too_many = tried,
        }
    }
    response.answers = all[..fits].to_vec();
    response.to_vec()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::super::settings::name;
    use super::super::table::Addresses;
    use super::super::testing::table;
    use super::*;

    fn query(host: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(hickory_proto::op::Query::query(name(host).unwrap(), kind));
        message
    }

    fn taken(message: &Message) -> Query {
        match read(&message.to_vec().unwrap()) {
            Request::Query(query) => *query,
            other => panic!("{other:?}"),
        }
    }

    fn local(host: &str, kind: RecordType) -> Vec<String> {
        let query = taken(&query(host, kind));
        let found = table().find(&query.question.name).unwrap();
        let bytes = query.encode(query.local(&found), Transport::Udp).unwrap();
        let response = Message::from_vec(&bytes).unwrap();
        assert_eq!((response.metadata.id, response.metadata.response_code), (7, ResponseCode::NoError));
        assert!(response.metadata.authoritative && response.metadata.recursion_available);
        response.answers.iter().map(|r| format!("{} {} {}", r.name, r.ttl, r.data)).collect()
    }

    #[test]
    fn names_of_the_mesh_have_addresses_of_the_type_asked_for_and_no_others() {
        assert_eq!(local("Users", RecordType::A), ["Users. 30 10.96.0.10"]);
        assert_eq!(local("users", RecordType::AAAA), ["users. 30 fd96::10"]);
        assert_eq!(local("stock.store", RecordType::AAAA), [""; 0], "there, and without one");
        assert_eq!(local("stock.store", RecordType::HTTPS), [""; 0]);
        assert_eq!(local("users", RecordType::ANY).len(), 2);
        let expanded = "stock.store.shop.svc.cluster.local";
        let alias = format!("{expanded}. 30 stock.store.");
        assert_eq!(local(expanded, RecordType::A), [alias.clone(), "stock.store. 30 10.96.0.20".to_owned()]);
        assert_eq!(local(expanded, RecordType::CNAME), [alias]);
        assert_eq!(local(expanded, RecordType::AAAA), [""; 0]);
        assert_eq!(local("x.wild.example", RecordType::A), ["x.wild.example. 30 240.240.0.2"]);
    }

    #[test]
    fn what_cannot_be_answered_is_refused_by_its_code() {
        let code = |bytes: &[u8]| match read(bytes) {
            Request::Refused(message) => Some((message.metadata.id, message.metadata.response_code)),
            Request::Query(_) => panic!("taken"),
            Request::Nothing => None,
        };
        let of = |change: &dyn Fn(&mut Message)| {
            let mut message = query("a.example", RecordType::A);
            change(&mut message);
            code(&message.to_vec().unwrap())
        };
        let refused = |code| Some((7, code));
        assert_eq!(of(&|m| m.metadata.op_code = OpCode::Notify), refused(ResponseCode::NotImp));
        assert_eq!(of(&|m| m.queries.clear()), refused(ResponseCode::FormErr));
        assert_eq!(of(&|m| m.queries[0].query_class = DNSClass::CH), refused(ResponseCode::Refused));
        assert_eq!(of(&|m| m.queries[0].query_type = RecordType::AXFR), refused(ResponseCode::Refused));
        let version = of(&|m| {
            let mut edns = Edns::new();
            edns.set_version(1);
            m.set_edns(edns);
        });
        // One number stands for two codes.
        assert!(version.is_some_and(|(_, code)| u16::from(code) == 16), "{version:?}");
        assert_eq!(of(&|m| m.metadata.message_type = MessageType::Response), None);
        // Cut in the question; in the header; an answer.
        let bytes = query("a.example", RecordType::A).to_vec().unwrap();
        assert_eq!(code(&bytes[..20]), refused(ResponseCode::FormErr));
        assert_eq!(code(&bytes[..11]), None);
        let mut response = bytes[..20].to_vec();
        response[2] |= 0x80;
        assert_eq!(code(&response), None);
    }

    #[test]
    fn an_answer_is_as_long_as_the_application_takes() {
        let many = Addresses { v4: (0..100).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect(), v6: Vec::new() };
        let found = Found { alias: None, addresses: Arc::new(many) };
        let answer = |edns: Option<u16>, transport| {
            let mut message = query("db.shop", RecordType::A);
            if let Some(payload) = edns {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                message.set_edns(edns);
            }
            let query = taken(&message);
            let bytes = query.encode(query.local(&found), transport).unwrap();
            let response = Message::from_vec(&bytes).unwrap();
            assert_eq!(response.edns.is_some(), edns.is_some());
            (bytes.len(), response.answers.len(), response.metadata.truncation)
        };
        let (length, answers, truncated) = answer(None, Transport::Udp);
        assert!(length <= 512 && answers > 20 && truncated, "{length} {answers}");
        let (length, more, truncated) = answer(Some(1232), Transport::Udp);
        assert!(length <= 1232 && more > answers && truncated, "{length} {more}");
        assert_eq!(answer(Some(4096), Transport::Udp).1, 100);
        let (_, all, truncated) = answer(None, Transport::Tcp);
        assert_eq!((all, truncated), (100, false));
    }

    #[test]
    fn options_are_passed_on_but_those_between_neighbours() {
        let mut message = query("a.example", RecordType::A);
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true);
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![1; 8]));
        edns.options_mut().insert(EdnsOption::Unknown(65_001, vec![2]));
        message.set_edns(edns);
        let query = taken(&message);
        let codes: Vec<u16> = query.options.iter().map(|(code, _)| u16::from(*code)).collect();
        assert_eq!((codes, query.question.dnssec), (vec![65_001], true));
    }
}
