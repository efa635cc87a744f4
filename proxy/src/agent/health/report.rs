//! How the application of a workload that entered itself is (metadata `AUTO_REGISTER_GROUP`): asked by the `readinessProbe` of the
//! proxy's settings (`PROXY_CONFIG`), as kubelet would ask, and told to the control plane whenever it changes. Where the proxy is
//! another process, that must be ready, too: an application that nobody can reach is not well.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::config::Prober;
use super::{Asked, ask};
use crate::xds::Report;

/// A probe, and when it is made.
#[derive(Debug)]
pub(crate) struct Reporter {
    prober: Prober,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success: u64,
    failure: u64,
}

impl Reporter {
    /// From what the node says of itself; none where nothing is to be reported.
    ///
    /// # Errors
    /// The probe cannot be made.
    pub(crate) fn read(group: &str, proxy_config: &Value) -> anyhow::Result<Option<Self>> {
        let probe = &proxy_config["readinessProbe"];
        if group.is_empty() || probe.is_null() {
            return Ok(None);
        }
        Self::of(probe.clone()).context("PROXY_CONFIG: readinessProbe").map(Some)
    }

    fn of(mut probe: Value) -> anyhow::Result<Self> {
        let Some(fields) = probe.as_object_mut() else { bail!("must be an object, as Kubernetes has it") };
        let mut number = |name: &str, default: u64| match fields.remove(name) {
            None => Ok(default),
            Some(value) => match value.as_u64() {
                Some(0) => Ok(default),
                Some(number) => Ok(number),
                None => bail!("{name}: {value} is no number of 0 or more"),
            },
        };
        let initial_delay = Duration::from_secs(number("initialDelaySeconds", 0)?);
        let period = Duration::from_secs(number("periodSeconds", 10)?);
        let timeout = Duration::from_secs(number("timeoutSeconds", 1)?);
        let (success, failure) = (number("successThreshold", 1)?, number("failureThreshold", 3)?);
        let prober = Prober::parse(probe)?;
        Ok(Self { prober, initial_delay, period, timeout, success, failure })
    }

    /// Asks for ever; `report` gets what comes of it, whenever that changes. `unready`: why the proxy cannot take requests.
    pub(crate) async fn run(
        self,
        pod: IpAddr,
        report: watch::Sender<Report>,
        unready: impl AsyncFn() -> Option<String>,
    ) {
        tokio::time::sleep(self.initial_delay).await;
        let mut clock = tokio::time::interval(self.period);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut good, mut bad) = (0, 0);
        loop {
            clock.tick().await;
            let outcome = match unready().await {
                Some(reason) => Err(format!("the proxy is not ready: {reason}")),
                None => self.ask(pod).await,
            };
            let told = report.borrow().as_ref().map(Result::is_ok);
            match outcome {
                Ok(()) => {
                    (good, bad) = (good + 1, 0);
                    if good >= self.success && told != Some(true) {
                        tracing::info!("the application passes its probe: the control plane is told");
                        report.send_replace(Some(Ok(())));
                    }
                }
                Err(reason) => {
                    (good, bad) = (0, bad + 1);
                    if bad >= self.failure && told != Some(false) {
                        tracing::warn!(reason, "the application fails its probe: the control plane is told");
                        report.send_replace(Some(Err(reason)));
                    }
                }
            }
        }
    }

    async fn ask(&self, pod: IpAddr) -> Result<(), String> {
        let headers = http::HeaderMap::new();
        let asked = Asked { headers: &headers, port: self.prober.port };
        let asking = ask(&self.prober, pod, &asked);
        match tokio::time::timeout(self.timeout, asking).await {
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Ok(Ok(outcome)) if outcome.status.as_u16() < 400 => Ok(()),
            Ok(Ok(outcome)) => {
                let said = &outcome.body[..outcome.body.len().min(200)];
                Err(format!("{}: {}", outcome.status, String::from_utf8_lossy(said).trim()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_who_enters_itself_reports_and_a_probe_that_cannot_be_made_is_refused() {
        let config =
            json!({"readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 2}, "concurrency": 2});
        let reporter = Reporter::read("vm", &config).unwrap().unwrap();
        assert_eq!((reporter.period, reporter.failure), (Duration::from_secs(2), 3));
        assert!(Reporter::read("", &config).unwrap().is_none());
        assert!(Reporter::read("vm", &Value::Null).unwrap().is_none());
        for (probe, words) in [
            (json!({"exec": {"command": []}}), "exec.command"),
            (json!({"exec": {"command": ["true"]}, "tcpSocket": {"port": 1}}), "one of"),
            (json!({"periodSeconds": 1}), "one of httpGet, tcpSocket, grpc"),
            (json!({"tcpSocket": {"port": 1}, "failureThreshold": -1}), "failureThreshold"),
            (json!("always"), "must be an object"),
        ] {
            let error = Reporter::read("vm", &json!({"readinessProbe": probe})).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{probe}: {error:#}");
        }
    }

    #[tokio::test]
    async fn what_changes_is_reported_after_as_many_answers_as_it_takes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut reporter = Reporter::of(json!({"tcpSocket": {"port": port}, "failureThreshold": 2})).unwrap();
        reporter.period = Duration::from_millis(20);
        let (sender, mut report) = watch::channel(None);
        let local = tokio::task::LocalSet::new();
        let proxy = std::rc::Rc::new(std::cell::Cell::new(true));
        let ready = proxy.clone();
        let unready = async move || (!ready.get()).then(|| "it drains".to_owned());
        local.spawn_local(reporter.run(IpAddr::from([127, 0, 0, 1]), sender, unready));
        let seen = async {
            let limit = Duration::from_secs(10);
            tokio::time::timeout(limit, report.changed()).await.unwrap().unwrap();
            assert_eq!(*report.borrow_and_update(), Some(Ok(())));
            // An application that nobody can reach is not well.
            proxy.set(false);
            tokio::time::timeout(limit, report.changed()).await.unwrap().unwrap();
            let said = report.borrow_and_update().clone();
            assert_eq!(said, Some(Err("the proxy is not ready: it drains".to_owned())));
            proxy.set(true);
            tokio::time::timeout(limit, report.changed()).await.unwrap().unwrap();
            assert_eq!(*report.borrow_and_update(), Some(Ok(())));
            drop(listener);
            tokio::time::timeout(limit, report.changed()).await.unwrap().unwrap();
            let said = report.borrow_and_update().clone();
            assert!(said.as_ref().unwrap().as_ref().unwrap_err().contains("no connection"), "{said:?}");
        };
        local.run_until(seen).await;
    }
}
