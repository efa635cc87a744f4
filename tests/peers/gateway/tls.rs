//! TLS in every way that a server of a Gateway has, by what curl says to it.

use super::Edge;

/// What curl says about a request, in few words.
const SAID: &str = "%{http_code} %{http_version} %{ssl_verify_result}";

impl Edge {
    /// Status and version of a request with these options; else what curl complains of.
    fn tls(&self, host: &str, more: &[&str]) -> String {
        let options = [&["-o", "/dev/null", "-w", SAID], more].concat();
        match self.curl(&format!("https://{host}/whoami"), &options) {
            Ok(said) => said.trim_end_matches(" 0").to_owned(),
            Err(error) => error.split("curl: ").nth(1).unwrap_or(&error).trim().to_owned(),
        }
    }
}

#[test]
fn every_way_of_tls_is_what_curl_expects() {
    let edge = Edge::start(1);
    let client = [edge.file("client/tls.crt"), edge.file("client/tls.key")];
    let stranger = [edge.file("stranger/tls.crt"), edge.file("stranger/tls.key")];
    let with =
        |pair: &[String; 2]| ["--cert".to_owned(), pair[0].clone(), "--key".to_owned(), pair[1].clone()];
    let (own, foreign) = (with(&client), with(&stranger));
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let foreign: Vec<&str> = foreign.iter().map(String::as_str).collect();
    let both = |a: &[&'static str], b: &[&str]| -> String {
        let options: Vec<&str> = a.iter().copied().chain(b.iter().copied()).collect();
        edge.tls("mutual.example", &options)
    };
    // What is asked, and what is to begin the answer.
    let checks: Vec<(&str, String, &str)> = vec![
        (
            "plain",
            edge.curl("http://plain.example/whoami", &["-o", "/dev/null", "-w", SAID]).unwrap(),
            "200 1.1",
        ),
        ("HTTP/2 by default", edge.tls("simple.example", &[]), "200 2"),
        ("HTTP/1.1 by ALPN", edge.tls("simple.example", &["--http1.1"]), "200 1.1"),
        ("no ALPN", edge.tls("simple.example", &["--no-alpn"]), "200 1.1"),
        ("TLS 1.2", edge.tls("simple.example", &["--tls-max", "1.2"]), "200 2"),
        ("TLS 1.3", edge.tls("simple.example", &["--tlsv1.3"]), "200 2"),
        ("TLS 1.1", edge.tls("simple.example", &["--tls-max", "1.1"]), "(35)"),
        ("a curve", edge.tls("simple.example", &["--curves", "P-256"]), "200 2"),
        (
            "a cipher",
            edge.tls("simple.example", &["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES256-GCM-SHA384"]),
            "200 2",
        ),
        (
            "an RC4 cipher",
            edge.tls("simple.example", &["--tls-max", "1.2", "--ciphers", "DES-CBC3-SHA"]),
            "(",
        ),
        ("a wildcard", edge.tls("one.wild.example", &[]), "200 2"),
        ("a name two levels down", edge.tls("a.b.wild.example", &["-k"]), "200 2"),
        ("a wildcard's minimum", edge.tls("one.wild.example", &["--tls-max", "1.2"]), "(35)"),
        ("the wildcard's parent", edge.tls("wild.example", &[]), "("),
        ("no such name", edge.tls("other.example", &[]), "("),
        ("no name", edge.tls("10.88.1.1", &["-k"]), "("),
        ("mutual, without", edge.tls("mutual.example", &[]), "(5"),
        ("mutual, without, 1.2", edge.tls("mutual.example", &["--tls-max", "1.2"]), "("),
        ("mutual, with", both(&[], &own), "200 2"),
        ("mutual, with, 1.2", both(&["--tls-max", "1.2"], &own), "200 2"),
        ("mutual, with, HTTP/1.1", both(&["--http1.1"], &own), "200 1.1"),
        ("mutual, a stranger's", both(&[], &foreign), "(5"),
        ("optional, without", edge.tls("optional.example", &[]), "200 2"),
        ("optional, with", edge.tls("optional.example", &own), "200 2"),
        ("optional, a stranger's", edge.tls("optional.example", &foreign), "(5"),
        ("through", edge.tls("through.example", &[]), "200 1.1"),
        ("a connection for another host", edge.tls("simple.example", &["-H", "host: mutual.example"]), "404"),
        ("early data", edge.tls("simple.example", &["--tlsv1.3", "--tcp-fastopen"]), "200 2"),
    ];
    let wrong: Vec<_> = checks.iter().filter(|(_, seen, wanted)| !seen.starts_with(wanted)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", edge.pods.logs());

    // The service is told who came, by a certificate that was verified alone.
    let told = |host: &str, more: &[&str]| edge.curl(&format!("https://{host}/whoami"), more).unwrap();
    assert!(told("mutual.example", &own).contains("\"hash\""), "{}", told("mutual.example", &own));
    assert!(!told("optional.example", &[]).contains("\"hash\""));
    let claim = ["-H", "x-forwarded-client-cert: By=x;Hash=beef;URI=spiffe://cluster.local/ns/a/sa/b"];
    assert!(!told("simple.example", &claim).contains("beef"));
    // Plain before the gateway, TLS behind it.
    let originated = edge.curl("http://plain.example/originate", &[]);
    assert!(originated.as_ref().is_ok_and(|said| said.contains("through.example charged")), "{originated:?}");
    // Bytes that are no TLS at all.
    let tcp = edge.curl("http://plain.example/whoami", &["--connect-to", "plain.example:80:10.88.1.1:9000"]);
    assert!(tcp.as_ref().is_ok_and(|said| said.contains("\"web\"")), "{tcp:?}");
}

#[test]
fn a_certificate_is_replaced_while_it_is_used() {
    let edge = Edge::start(1);
    let serial = || {
        let said = edge.curl("https://simple.example/whoami", &["-o", "/dev/null", "-w", "%{certs}"]);
        said.unwrap_or_else(|error| panic!("{error}\n{}", edge.pods.logs()))
    };
    let first = serial();
    assert!(first.contains("BEGIN CERTIFICATE"), "{first}");
    let directory = edge.directory.path().join("credentials/edge/simple");
    for round in 0..3 {
        let before = serial();
        edge.authority.credential(&directory, "simple.example");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while serial() == before {
            assert!(std::time::Instant::now() < end, "round {round}: the old one is still shown");
        }
    }
    // A half-written one changes nothing.
    std::fs::write(directory.join("tls.key"), "-----BEGIN PRIVATE KEY-----\n").unwrap();
    let before = serial();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(4);
    while std::time::Instant::now() < end {
        assert_eq!(serial(), before);
    }
}
