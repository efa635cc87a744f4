//! What pods have said, as a kubelet tells the API server (`/containerLogs/NAMESPACE/POD/CONTAINER?sinceTime=`).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A log, and how long it was when.
struct Log {
    file: PathBuf,
    marks: Vec<(OffsetDateTime, u64)>,
}

/// The logs of all pods, by name.
#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<BTreeMap<String, Log>>>);

impl Logs {
    /// Answers for them at an address, in a thread that ends with the test.
    pub fn serve(at: SocketAddr) -> Self {
        let logs = Self::default();
        let listener = TcpListener::bind(at).unwrap();
        let key = rcgen::generate_simple_self_signed([at.ip().to_string()]).unwrap();
        let chain = vec![key.cert.der().clone()];
        let private = rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, private)
                .unwrap();
        let (config, answering) = (Arc::new(config), logs.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, logs) = (config.clone(), answering.clone());
                // Who goes away before the end gets no more.
                std::thread::spawn(move || drop(logs.answer(stream, config)));
            }
        });
        logs
    }

    pub fn add(&self, pod: &str, file: PathBuf) {
        self.0.lock().unwrap().insert(pod.to_owned(), Log { file, marks: Vec::new() });
    }

    /// Notes how long they are: what is written later is of later.
    pub fn mark(&self) {
        let now = OffsetDateTime::now_utc();
        for log in self.0.lock().unwrap().values_mut() {
            let length = std::fs::metadata(&log.file).map_or(0, |meta| meta.len());
            if log.marks.last().is_none_or(|(_, last)| *last != length) {
                log.marks.push((now, length));
            }
        }
    }

    /// What a pod has said since.
    fn said(&self, pod: &str, since: Option<OffsetDateTime>) -> Vec<u8> {
        let logs = self.0.lock().unwrap();
        let Some(log) = logs.get(pod) else { return Vec::new() };
        let before =
            |since| log.marks.iter().take_while(|(at, _)| *at <= since).last().map(|(_, length)| *length);
        let from = since.and_then(before).unwrap_or_default();
        let mut text = Vec::new();
        let mut file = std::fs::File::open(&log.file).unwrap();
        file.seek(SeekFrom::Start(from)).unwrap();
        file.read_to_end(&mut text).unwrap();
        text
    }

    fn answer(&self, stream: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<()> {
        let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
        let mut reader = BufReader::new(StreamOwned::new(connection, stream));
        let mut lines = reader.by_ref().lines();
        let asked = lines.next().transpose()?.unwrap_or_default();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let target = asked.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let since = query.split('&').find_map(|pair| pair.strip_prefix("sinceTime="));
        let since = since.and_then(|text| OffsetDateTime::parse(&text.replace("%3A", ":"), &Rfc3339).ok());
        let said = self.said(path.split('/').nth(3).unwrap_or_default(), since);
        let mut stream = reader.into_inner();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", said.len())?;
        stream.write_all(&said)?;
        stream.conn.send_close_notify();
        stream.flush()
    }
}
