//! The applications. Each calls the next in plain text, and its database by that one's own client.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use super::http::{Message, answer, ask};
use super::service;
use crate::kafka::Producer;
use crate::netns::databases::{psql, redis_cli};
use crate::netns::hosts::{Host, Serving};
use crate::programs::peer;
use crate::programs::run;

/// What all of them have.
pub struct Shared {
    /// Where each runs.
    pub hosts: Arc<BTreeMap<&'static str, Host>>,
    /// What they write.
    pub written: Arc<Mutex<Vec<String>>>,
    /// The roots of the world outside.
    pub ca: PathBuf,
}

/// One of them, busy with a request.
struct App<'a> {
    name: &'static str,
    shared: &'a Shared,
    transaction: String,
}

type Answer = Result<String, String>;

impl App<'_> {
    fn write(&self, what: &str) {
        let line = format!("{} transaction={} {what}", self.name, self.transaction);
        self.shared.written.lock().unwrap().push(line);
    }

    fn host(&self) -> &Host {
        &self.shared.hosts[self.name]
    }

    /// Calls another service by the address of its name.
    fn call(&self, request: &str, name: &str, body: &str) -> Answer {
        let headers = format!("host: {name}.ecotrack:8080\r\nx-transaction-id: {}\r\n", self.transaction);
        let answer = ask(self.host(), service(name), request, &headers, body);
        match answer.status() {
            200 => Ok(answer.body),
            status => Err(format!("{name} answers {status}: {}", answer.body)),
        }
    }

    fn sql(&self, query: &str) -> Answer {
        psql(self.host(), &service("postgres-primary").ip().to_string(), "disable", query)
    }

    /// Charges a card with a service outside, by its name.
    fn charge(&self) -> Answer {
        let mut curl = Command::new(peer("WEFT_CURL"));
        curl.args(["-s", "-S", "-f", "--max-time", "10", "--cacert"]).arg(&self.shared.ca);
        // Where it is, the application knows; that its sidecar sends it by the gateway, it does not.
        curl.args(["--resolve", "api.stripe.com:443:10.99.0.2", "https://api.stripe.com/v1/charges"]);
        run(&mut self.host().command(&curl))
    }
}

/// Starts all; they end with what comes back, and the one that is notified with its messages.
pub fn start(shared: &Arc<Shared>, producer: Producer, messages: Receiver<String>) -> Vec<Serving> {
    let producer = Mutex::new(producer);
    let notifying = shared.clone();
    std::thread::spawn(move || {
        // TRANSACTION CARD
        for message in &messages {
            let (transaction, _) = message.split_once(' ').unwrap_or((&message, ""));
            let transaction = transaction.to_owned();
            let app = App { name: "notification-service", shared: &notifying, transaction };
            let key = format!("notified:{}", app.transaction);
            match redis_cli(app.host(), &service("redis").ip().to_string(), &["set", &key, &message]) {
                Ok(said) => app.write(&format!("notified, redis says {said}")),
                Err(error) => app.write(&format!("redis: {error}")),
            }
        }
    });
    vec![
        serve(shared, "user-service", |app, (method, path), body| match (method, path) {
            ("POST", "/api/users/login") => {
                let id = app.sql(&format!("select id from users where email = '{body}'"))?;
                let hint = app.call("GET /api/products/popular", "product-service", "")?;
                Ok(format!("{{\"user\": {id}, \"hint\": {hint}}}"))
            }
            _ => app.sql("select count(*) from users"),
        }),
        serve(shared, "product-service", |app, (_, path), _| match path {
            "/api/products/popular" => app.call("GET /api/orders/popular", "order-service", ""),
            _ => app.sql("select json_agg(name order by id) from products"),
        }),
        serve(shared, "order-service", |app, asked, body| match asked {
            ("POST", "/api/orders") => {
                let (product, card) = body.split_once(' ').unwrap_or((body, ""));
                app.sql(&format!(
                    "insert into orders (transaction, product) values ('{}', {product})",
                    app.transaction
                ))?;
                app.call("POST /charge", "payment-service", card)
            }
            _ => app.sql("select coalesce(max(product), 0) from orders"),
        }),
        serve(shared, "payment-service", move |app, _, card| {
            let charged = app.charge()?;
            let transaction = &app.transaction;
            app.sql(&format!("insert into payments (transaction, card) values ('{transaction}', '{card}')"))?;
            producer.lock().unwrap().send(&format!("{transaction} {card}"));
            let expected = app.call("GET /expect", "notification-service", "")?;
            Ok(format!("{{\"charged\": \"{charged}\", \"notification\": \"{expected}\"}}"))
        }),
        serve(shared, "notification-service", |_, _, _| Ok("soon".to_owned())),
    ]
}

fn serve(
    shared: &Arc<Shared>,
    name: &'static str,
    act: impl Fn(&App<'_>, (&str, &str), &str) -> Answer + Send + Sync + 'static,
) -> Serving {
    let held = shared.clone();
    shared.hosts[name].serve(Ipv4Addr::UNSPECIFIED, 8080, move |mut stream, _| -> std::io::Result<()> {
        let request = Message::read(&stream)?;
        let transaction = request.header("x-transaction-id").unwrap_or("none").to_owned();
        let app = App { name, shared: &held, transaction };
        let done = act(&app, request.asks(), &request.body);
        app.write(&format!(
            "{} {}",
            request.first,
            done.as_ref().map_or_else(|e| format!("failed: {e}"), |_| "ok".to_owned())
        ));
        match done {
            Ok(body) => answer(&mut stream, 200, &body),
            Err(error) => answer(&mut stream, 500, &error),
        }
    })
}
