//! Who may read proxies' admin pages through the control plane: the API server says who a token is, and its roles what that one may.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Server;
use crate::programs::weft;

const ROLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbac/inspect.yaml");

/// Status and body of a GET at a control plane's debug port.
fn ask(control: &str, path: &str, token: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(format!("{control}:8080")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let authorization =
        if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    write!(stream, "GET {path} HTTP/1.1\r\nhost: c\r\n{authorization}connection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

/// Of a control plane to which a proxy of the namespace `shop` is connected.
pub(super) fn roles_say_who_may_read_proxies(server: &Server, control: &str) {
    server.kubectl(&["apply", "-f", ROLE]);
    for account in ["reader", "stranger"] {
        server.kubectl(&["-n", "shop", "create", "serviceaccount", account]);
    }
    let bound = [
        "create",
        "rolebinding",
        "reads",
        "--clusterrole",
        "weft-inspect",
        "--serviceaccount",
        "shop:reader",
    ];
    server.kubectl(&[&["-n", "shop"][..], &bound].concat());
    let token = |account: &str, audience: &[&str]| {
        let text = server.kubectl(&[&["-n", "shop", "create", "token", account][..], audience].concat());
        text.trim().to_owned()
    };
    let reader = token("reader", &["--audience", "weft.dev"]);
    let end = Instant::now() + Duration::from_secs(60);
    // The role's binding has to come to the API server's own authorizer, and the proxy's stream to the control plane.
    let proxy = loop {
        let (status, text) = ask(control, "/proxies", &reader);
        let page: Value = serde_json::from_str(&text).unwrap_or_default();
        let one =
            page["proxies"].as_array().and_then(|all| all.iter().find(|one| one["asked"] == true).cloned());
        if let Some(one) = one {
            break one["name"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < end, "{status} {text}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(proxy.ends_with(".shop"), "{proxy}");
    let page = format!("/proxies/{proxy}/admin/server_info");
    // A token for this alone, and one that is good for the API server itself.
    for token in [&reader, &token("reader", &[])] {
        let (status, text) = ask(control, &page, token);
        assert!(status == 200 && text.contains("\"version\": \"weft/"), "{status} {text}");
    }
    // One of the namespace, and not of others.
    let (status, text) = ask(control, "/proxies/cart.other/admin/stats", &reader);
    assert!(status == 403 && text.contains("in namespace \\\"other\\\""), "{status} {text}");
    let stranger = token("stranger", &["--audience", "weft.dev"]);
    for path in ["/proxies", &page, "/proxies/nobody.shop/admin/stats"] {
        let (status, text) = ask(control, path, &stranger);
        assert_eq!(status, 403, "{path}: {text}");
        for words in ["system:serviceaccount:shop:stranger", "get proxies/admin", "ClusterRole weft-inspect"]
        {
            assert!(text.contains(words), "{path}: {text}");
        }
    }
    for (token, words) in [
        (String::new(), "no credentials"),
        ("nonsense".to_owned(), "Kubernetes does not"),
        // A proxy's own: whoever takes it from a pod reads nobody's pages.
        (token("reader", &["--audience", "istio-ca"]), "Kubernetes does not"),
    ] {
        let (status, text) = ask(control, &page, &token);
        assert!(
            status == 401 && text.contains(words) && text.contains("--audience weft.dev"),
            "{status} {text}"
        );
    }
    let file = server.directory().join("reader-token");
    std::fs::write(&file, &reader).unwrap();
    let mut command = weft();
    command.args(["proxy-config", "secrets", &proxy, "--control", control, "--token-file"]).arg(&file);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("spiffe://cluster.local/ns/shop/sa/cart"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
