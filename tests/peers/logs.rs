//! What a real Envoy tells its access log service and its collector of OTLP, and what our proxy tells them of the same requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use serde_json::Value;

use crate::collectors::{Collector, bootstrap};
use crate::programs::{Process, get, peer, until_or, weft_proxy};

/// Answers everything on a connection that says that it is the last.
fn backend() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                loop {
                    head.clear();
                    while !head.ends_with(b"\r\n\r\n") {
                        if !matches!(stream.read(&mut byte), Ok(1)) {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    let _ = stream.write_all(
                        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello",
                    );
                }
            });
        }
    });
    port
}

fn send(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut buffer = [0; 4096];
    let mut text = String::new();
    // A proxy of bytes ends when the client does.
    while !text.contains("hello") && !text.contains("gone") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "{text}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    text
}

/// Requests and a connection through a proxy at an address, and what its collector heard of them, as far as it says the same twice.
fn heard(ip: &str, name: &str, start: impl FnOnce(&Path, &Path) -> Process) -> Value {
    let (directory, collector) = (tempfile::tempdir().unwrap(), Collector::start());
    let file = directory.path().join("access.log");
    let mut config = bootstrap(ip, backend(), collector.port, file.to_str().unwrap());
    flush_often(&mut config);
    let path = directory.path().join("bootstrap.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut process = start(&path, directory.path());
    let at = |port: u16| -> SocketAddr { format!("{ip}:{port}").parse().unwrap() };
    process.wait("ready", || get(at(15000), "/ready").is_ok_and(|(status, _)| status == 200));
    send(at(8080), "GET /a?b=c HTTP/1.1\r\nhost: shop\r\nx-who: me\r\nuser-agent: test\r\n\r\n");
    send(at(8080), "POST /post HTTP/1.1\r\nhost: shop\r\nreferer: http://r\r\ncontent-length: 3\r\n\r\nabc");
    send(at(8080), "GET /gone HTTP/1.1\r\nhost: shop\r\n\r\n");
    send(at(8081), "GET /bytes HTTP/1.1\r\nhost: shop\r\n\r\n");
    let came = || collector.came();
    let records = || -> Vec<Value> {
        let came = came();
        let each = came.records.iter().flat_map(|(_, request)| &request.resource_logs);
        let each = each.flat_map(|logs| {
            let sender = xds_protos::json::to_value(logs.resource.as_ref().unwrap());
            let records = logs.scope_logs.iter().flat_map(|scope| &scope.log_records);
            records.map(move |record| serde_json::json!([sender, xds_protos::json::to_value(record)]))
        });
        each.collect()
    };
    let story = || format!("{name}: {:?}", came());
    until_or("all entries", story, || {
        came().http.len() == 3 && came().tcp.len() == 1 && records().len() == 6
    });
    // Lines wait for up to half a second.
    let lines = || std::fs::read_to_string(&file).unwrap_or_default();
    until_or("all lines", lines, || lines().lines().count() == 3);
    let mut records = records();
    let came = came();
    records.sort_by_key(|record| record.to_string().replace(char::is_numeric, ""));
    let mut all = serde_json::json!({
        "http": came.http.iter().map(xds_protos::json::to_value).collect::<Vec<_>>(),
        "tcp": came.tcp.iter().map(xds_protos::json::to_value).collect::<Vec<_>>(),
        "records": records,
        "streams": came.streams.iter().map(|s| (&s.log_name, s.node.as_ref().map(|n| (&n.id, &n.cluster)))).collect::<Vec<_>>(),
        "file": lines().lines().map(masked_line).collect::<Vec<_>>(),
    });
    mask(&mut all, ip);
    all
}

/// A line of Envoy's default format without when it was, how long it took and what the request was called.
fn masked_line(line: &str) -> String {
    let mut quoted: Vec<String> = line.split('"').map(str::to_owned).collect();
    if let Some(start) = quoted.first_mut() {
        *start = "[when] ".to_owned();
    }
    if let Some(numbers) = quoted.get_mut(2) {
        let words: Vec<&str> = numbers.split(' ').collect();
        *numbers = words
            .iter()
            .enumerate()
            .map(|(i, w)| if i >= 5 && *w != "-" && !w.is_empty() { "ms" } else { w })
            .collect::<Vec<_>>()
            .join(" ");
    }
    for (index, name) in [(7, "id"), (11, "host")] {
        if let Some(text) = quoted.get_mut(index).filter(|text| *text != "-") {
            *text = name.to_owned();
        }
    }
    quoted.join("\"")
}

/// What is otherwise each time, and what we do not measure (the module of entries says so).
fn mask(value: &mut Value, ip: &str) {
    const OTHERWISE: [&str; 8] = [
        "start_time",
        "time_unix_nano",
        "port_value",
        "request_id",
        "node_name",
        // An answer tells how long the upstream took, in more or fewer digits.
        "response_headers_bytes",
        "downstream_header_bytes_sent",
        "downstream_wire_bytes_sent",
    ];
    // Envoy makes up ids of connections of bytes.
    const UNMEASURED: [&str; 4] = [
        "stream_id",
        "time_to_first_upstream_tx_byte",
        "time_to_last_upstream_rx_byte",
        "time_to_first_downstream_tx_byte",
    ];
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !UNMEASURED.contains(&name.as_str()));
            for (name, value) in fields {
                if OTHERWISE.contains(&name.as_str()) || name.starts_with("time_to") || name == "duration" {
                    *value = "masked".into();
                }
                mask(value, ip);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| mask(value, ip)),
        Value::String(text) if text.contains(ip) => *text = text.replace(ip, "IP"),
        _ => {}
    }
}

/// Short flushes, so that nobody waits.
fn flush_often(config: &mut Value) {
    match config {
        Value::Object(fields) => {
            if let Some(interval) = fields.get_mut("buffer_flush_interval") {
                *interval = "0.05s".into();
            }
            fields.values_mut().for_each(flush_often);
        }
        Value::Array(list) => list.iter_mut().for_each(flush_often),
        _ => {}
    }
}

#[test]
fn collectors_hear_from_our_proxy_what_they_hear_from_envoy() {
    let envoy = heard("127.0.72.1", "envoy", |config, directory| {
        let mut command = std::process::Command::new(peer("WEFT_ENVOY"));
        command.arg("-c").arg(config).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
        command.args(["--file-flush-interval-msec", "20"]);
        Process::start("envoy", &mut command, directory)
    });
    let ours = heard("127.0.72.2", "weft", |config, directory| {
        let mut command = weft_proxy();
        command.arg("-c").arg(config).args(["--concurrency", "1"]);
        Process::start("weft", &mut command, directory)
    });
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    let (envoy, ours) = (text(&envoy), text(&ours));
    for (line, (theirs, own)) in envoy.lines().zip(ours.lines()).enumerate() {
        assert_eq!(own, theirs, "line {line}\nenvoy: {envoy}\nours: {ours}");
    }
    assert_eq!(ours, envoy);
}

#[test]
fn a_real_collector_takes_logs_and_metrics_and_its_counts_are_those_of_the_admin_interface() {
    const IP: &str = "127.0.72.3";
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let config = format!(
        "
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:24317'}}}}}}
exporters:
  file/logs: {{path: '{}', flush_interval: 100ms}}
  file/metrics: {{path: '{}', flush_interval: 100ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    logs: {{receivers: [otlp], exporters: [file/logs]}}
    metrics: {{receivers: [otlp], exporters: [file/metrics]}}
",
        file("logs.json").display(),
        file("metrics.json").display()
    );
    std::fs::write(file("collector.yaml"), config).unwrap();
    let mut command = std::process::Command::new(peer("WEFT_COLLECTOR"));
    command.arg("--config").arg(format!("file:{}", file("collector.yaml").display()));
    let mut collector = Process::start("collector", &mut command, directory.path());
    collector.wait("listening", || TcpStream::connect("127.0.0.1:24317").is_ok());
    let config = bootstrap(IP, backend(), 24317, file("access.log").to_str().unwrap());
    std::fs::write(file("bootstrap.json"), config.to_string()).unwrap();
    let mut command = weft_proxy();
    command.arg("-c").arg(file("bootstrap.json")).args(["--concurrency", "2"]);
    let mut weft = Process::start("weft", &mut command, directory.path());
    let at = |port: u16| -> SocketAddr { format!("{IP}:{port}").parse().unwrap() };
    weft.wait("ready", || get(at(15000), "/ready").is_ok_and(|(status, _)| status == 200));
    for number in 0..20 {
        send(at(8080), &format!("GET /{number} HTTP/1.1\r\nhost: shop\r\n\r\n"));
    }
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(file(name)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let paths = || -> Vec<String> {
        let senders = lines("logs.json").into_iter().flat_map(|line| list(&line, "resourceLogs"));
        let records = senders.flat_map(|s| list(&s, "scopeLogs")).flat_map(|s| list(&s, "logRecords"));
        let body = |record: Value| record["body"]["kvlistValue"]["values"][0]["value"]["stringValue"].clone();
        let mut all: Vec<String> = records.map(|r| body(r).as_str().unwrap_or_default().to_owned()).collect();
        all.sort();
        all
    };
    // Those by HTTP go nowhere: the collector's port is of gRPC alone.
    let mut expected: Vec<String> = (0..20).map(|number| format!("GET /{number}")).collect();
    expected.sort();
    until_or("all records", || format!("{:?}", paths()), || paths() == expected);
    let scraped = || {
        let text = get(at(15000), "/stats/prometheus").unwrap().1;
        let line = "envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"http\"} ";
        text.lines().find_map(|l| l.strip_prefix(line)?.parse::<u64>().ok())
    };
    assert_eq!(scraped(), Some(20));
    let pushed = || -> Option<u64> {
        let senders = lines("metrics.json").into_iter().rev().flat_map(|line| list(&line, "resourceMetrics"));
        let mut metrics = senders.flat_map(|s| list(&s, "scopeMetrics")).flat_map(|s| list(&s, "metrics"));
        let metric = metrics.find(|m| m["name"] == "pushed.http.downstream_rq_total")?;
        let points = list(&metric["sum"], "dataPoints");
        points.iter().map(|p| p["asInt"].as_str().and_then(|n| n.parse::<u64>().ok())).sum()
    };
    until_or("the count", || format!("{:?}", pushed()), || pushed() == scraped());
}
