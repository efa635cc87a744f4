//! What a Prometheus says of the requests to a version, where a trial asks one instead of the proxies.
//!
//! It is asked for what counters stand at, by the proxy that has them, and not for rates: what was added since the last answer is
//! worked out as with the proxies' own pages, so that a request counts once, whenever it was scraped.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Key;
use super::machine::Counts;
use super::scrape::{Before, Totals, Wanted};
use crate::ca::http::Client;
use crate::model::credentials::Credential;

/// How often it is asked. It looks at proxies less often than that, mostly.
const EVERY: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const LONGEST: usize = 16 * 1024 * 1024;

/// What a Prometheus knows, by proxy.
pub type Answer = Result<Vec<(String, Totals)>, String>;

/// What is asked, and whom.
#[derive(Clone)]
pub struct Question {
    /// The URL below which its API is.
    pub address: String,
    /// What proves us.
    pub authorization: Option<String>,
    /// The service's full host.
    pub host: String,
    /// The version on trial.
    pub version: String,
}

/// The header by which a credential proves us.
///
/// # Errors
/// It has neither a token nor a name with a password.
pub fn authorization(credential: &Credential) -> Result<String, String> {
    let values = credential.values();
    match (values.get("token"), values.get("username"), values.get("password")) {
        (Some(token), ..) => Ok(format!("Bearer {}", token.trim())),
        (None, Some(name), Some(password)) => {
            let pair = format!("{}:{}", name.trim(), password.trim_end_matches(['\r', '\n']));
            Ok(format!("Basic {}", BASE64.encode(pair)))
        }
        _ => Err("has neither token, nor username and password".to_owned()),
    }
}

/// Questions under way: nobody waits for an answer, and no trial for that of another one.
#[derive(Default)]
pub struct Asked {
    waiting: BTreeMap<Key, (Instant, Option<JoinHandle<Answer>>)>,
}

impl Asked {
    /// Forgets all but these.
    pub fn keep(&mut self, wanted: impl Fn(&Key) -> bool) {
        self.waiting.retain(|key, (_, task)| {
            let wanted = wanted(key);
            if !wanted && let Some(task) = task {
                task.abort();
            }
            wanted
        });
    }

    /// The answer that has come since, if one has; asks again when it is time.
    pub async fn next(&mut self, key: &Key, question: &Question) -> Option<Answer> {
        let mut answer = None;
        let (at, task) = self
            .waiting
            .entry(key.clone())
            .or_insert_with(|| (Instant::now(), Some(tokio::spawn(ask(question.clone())))));
        if let Some(done) = task.take_if(|task| task.is_finished()) {
            answer = Some(done.await.unwrap_or_else(|error| Err(error.to_string())));
        }
        if task.is_none() && at.elapsed() >= EVERY {
            (*at, *task) = (Instant::now(), Some(tokio::spawn(ask(question.clone()))));
        }
        answer
    }
}

/// What was counted since the answer before; none while it knows of no request at all: then what it tells next is history. `heard`
/// is the Prometheus that has told of some, and is expected to know of all that is scraped since.
pub fn since(
    heard: &mut Option<String>,
    before: &mut Before,
    address: &str,
    wanted: &Wanted,
    answer: Vec<(String, Totals)>,
) -> Option<Counts> {
    if answer.is_empty() {
        return None;
    }
    let known = heard.as_deref() == Some(address);
    let mut counts = Counts::default();
    for (proxy, totals) in answer {
        let proxy = format!("{address} {proxy}");
        if known {
            before.begin(&proxy, wanted);
        }
        counts.add(&before.since(&proxy, wanted, totals));
    }
    *heard = Some(address.to_owned());
    Some(counts)
}

/// Asks for the answers by status, and for how long they took.
async fn ask(question: Question) -> Answer {
    let client = Client::new(&question.address, None).map_err(|error| error.to_string())?;
    let client = client.with_longest(LONGEST);
    let requests = series(&client, &question, "istio_requests_total", "response_code").await?;
    let times = series(&client, &question, "istio_request_duration_milliseconds_bucket", "le").await?;
    let mut all: BTreeMap<String, Totals> = BTreeMap::new();
    for (proxy, code, count) in requests {
        let totals = all.entry(proxy).or_default();
        totals.requests += count;
        if code.starts_with('5') {
            totals.errors += count;
        }
    }
    for (proxy, bound, count) in times {
        // Without requests of its own it says nothing.
        let Some(totals) = all.get_mut(&proxy) else { continue };
        totals.took_at_most(&bound, count);
    }
    Ok(all.into_iter().collect())
}

/// A counter of the requests to the version, as callers have it, by proxy and one label.
async fn series(
    client: &Client,
    question: &Question,
    metric: &str,
    label: &str,
) -> Result<Vec<(String, String, u64)>, String> {
    let path = format!("/api/v1/query?query={}", encoded(&query(question, metric, label)));
    let headers = question.authorization.as_deref().map(|value| ("authorization", value));
    let (status, body) =
        client.call(Method::GET, &path, headers.as_slice(), None).await.map_err(|error| error.reason)?;
    let answer: Option<Value> = serde_json::from_slice(&body).ok();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(answer) = answer.filter(|answer| status.is_success() && answer["status"] == "success") else {
        return Err(match status.as_u16() {
            401 | 403 => format!("it answers {status}: give who we are in credentialName"),
            _ => {
                format!("it answers {status}, which is no result of a query: is its API below this address?")
            }
        });
    };
    let found = answer["data"]["result"].as_array().cloned().unwrap_or_default();
    let one = |one: &Value| {
        let count: f64 = one["value"][1].as_str()?.parse().ok()?;
        let labels = &one["metric"];
        let proxy = format!("{} {}", text(&labels["instance"]), text(&labels["pod"]));
        (count.is_finite() && count >= 0.0).then(|| (proxy, text(&labels[label]), count as u64))
    };
    Ok(found.iter().filter_map(one).collect())
}

/// The version is that of the label, or the one by which Istio calls it.
fn query(question: &Question, metric: &str, label: &str) -> String {
    let (host, version) = (quoted(&question.host), quoted(&question.version));
    let of =
        |label: &str| format!("{metric}{{reporter=\"source\",destination_service={host},{label}={version}}}");
    let (version, canonical) = (of("destination_version"), of("destination_canonical_revision"));
    format!("sum by (instance, pod, {label}) ({version} or {canonical})")
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    fn question(address: &str) -> Question {
        Question {
            address: address.to_owned(),
            authorization: Some("Bearer t".to_owned()),
            host: "a.n.svc.cluster.local".to_owned(),
            version: "v2".to_owned(),
        }
    }

    #[test]
    fn what_is_asked_is_about_the_version_alone_whatever_it_is_called() {
        let mut odd = question("");
        odd.version = "v\"2\\".to_owned();
        assert_eq!(
            query(&odd, "m", "le"),
            "sum by (instance, pod, le) (m{reporter=\"source\",destination_service=\"a.n.svc.cluster.local\",destination_version=\"v\\\"2\\\\\"} \
             or m{reporter=\"source\",destination_service=\"a.n.svc.cluster.local\",destination_canonical_revision=\"v\\\"2\\\\\"})"
        );
        assert_eq!(encoded("a{b=\"c d\"}"), "a%7Bb%3D%22c%20d%22%7D");
    }

    #[test]
    fn a_credential_has_a_token_or_a_name_with_a_password() {
        let of = |values: &[(&str, &str)]| {
            let values = values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned().into()));
            authorization(&Credential::new(values.collect::<BTreeMap<_, _>>()).unwrap())
        };
        assert_eq!(of(&[("token", "abc\n")]).unwrap(), "Bearer abc");
        assert_eq!(of(&[("username", "u"), ("password", "p")]).unwrap(), "Basic dTpw");
        assert!(of(&[("username", "u")]).unwrap_err().contains("neither token"));
    }

    /// A Prometheus that answers each query with the next of these: status and body.
    async fn server(answers: Vec<(u16, String)>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                asked.push(String::from_utf8(head).unwrap());
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (address, asked)
    }

    fn vector(label: &str, all: &[(&str, &str, &str)]) -> String {
        let one = |(instance, value, count): &(&str, &str, &str)| serde_json::json!({"metric": {"instance": instance, label: value}, "value": [1.5, count]});
        let all: Vec<_> = all.iter().map(one).collect();
        serde_json::json!({"status": "success", "data": {"resultType": "vector", "result": all}}).to_string()
    }

    #[tokio::test]
    async fn its_counters_are_totals_of_each_proxy() {
        let (address, asked) = server(vec![
            (
                200,
                vector("response_code", &[("p:1", "200", "90"), ("p:1", "503", "10"), ("q:1", "200", "5")]),
            ),
            (
                200,
                vector(
                    "le",
                    &[("p:1", "+Inf", "100"), ("p:1", "5", "40"), ("q:1", "5", "5"), ("r:1", "5", "9")],
                ),
            ),
        ])
        .await;
        let answer = ask(question(&address)).await.unwrap();
        let asked = asked.await.unwrap();
        assert!(asked[0].starts_with("GET /api/v1/query?query=sum%20by%20"), "{asked:?}");
        assert!(asked.iter().all(|head| head.contains("authorization: Bearer t\r\n")), "{asked:?}");
        let wanted = Wanted { host: String::new(), subset: String::new() };
        let mut before = Before::default();
        let mut counts = Counts::default();
        for (proxy, totals) in answer {
            before.begin(&proxy, &wanted);
            counts.add(&before.since(&proxy, &wanted, totals));
        }
        assert_eq!((counts.requests, counts.errors), (105, 10));
        assert_eq!(counts.times, [(5.0, 45), (f64::INFINITY, 60)]);
    }

    #[test]
    fn the_first_that_is_told_is_history_also_after_nothing_was() {
        let (mut heard, mut before) = (None, Before::default());
        let wanted = Wanted { host: String::new(), subset: String::new() };
        let answer = |all: &[(&str, u64)]| {
            let one = |(proxy, requests): &(&str, u64)| {
                let mut totals = Totals::default();
                totals.requests += *requests;
                ((*proxy).to_owned(), totals)
            };
            all.iter().map(one).collect::<Vec<_>>()
        };
        let mut counted = |address: &str, all: &[(&str, u64)]| {
            since(&mut heard, &mut before, address, &wanted, answer(all)).map(|counts| counts.requests)
        };
        assert_eq!(counted("a", &[]), None);
        assert_eq!(counted("a", &[("p", 1000)]), Some(0));
        // From then on a proxy that is new has counted nothing before.
        assert_eq!(counted("a", &[("p", 1001), ("q", 5)]), Some(6));
        assert_eq!(counted("a", &[]), None);
        assert_eq!(counted("b", &[("p", 1000)]), Some(0), "another one begins anew");
    }

    #[tokio::test]
    async fn whatever_is_no_answer_is_told_with_what_to_do() {
        for (status, body, told) in [
            (401, "", "give who we are in credentialName"),
            (404, "not here", "is its API below this address?"),
            (200, "<html>", "is its API below this address?"),
            (422, r#"{"status":"error","error":"x"}"#, "it answers 422"),
        ] {
            let (address, _asked) = server(vec![(status, body.to_owned())]).await;
            let error = ask(question(&address)).await.unwrap_err();
            assert!(error.contains(told), "{status}: {error}");
        }
        assert!(ask(question("http://127.0.0.1:1")).await.unwrap_err().contains("refused"));
    }
}
