//! One order, from the question for a certificate to the certificate (RFC 8555, section 7.1).

use anyhow::{Context, bail, ensure};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use time::OffsetDateTime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::certificate::Certificate;
use super::gateways::Gateways;
use super::store::Store;
use super::transport::Transport;
use crate::model::acme::{Acme, AcmeCertificate, Challenge};

/// Questions that gateways are to answer, as long as this lives.
struct Open<'a>(&'a watch::Sender<Vec<Challenge>>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.send_replace(Vec::new());
    }
}

/// Whether a server has said this (RFC 8555, section 6.7).
pub(super) fn says(error: &anyhow::Error, problem: &str) -> bool {
    matches!(error.downcast_ref::<Error>(), Some(Error::Api(said))
        if said.r#type.as_deref().is_some_and(|t| t.rsplit(':').next() == Some(problem)))
}

/// Orders a certificate.
pub(super) async fn order(
    namespace: &str,
    wanted: &AcmeCertificate,
    store: &Store,
    open: &watch::Sender<Vec<Challenge>>,
    gateways: &mut Gateways,
) -> anyhow::Result<Certificate> {
    let account = account(wanted, store).await?;
    let names = wanted.names();
    let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let challenges = challenges(namespace, &names, &mut order).await?;
    if !challenges.is_empty() {
        let version = Acme::new(Vec::new(), challenges.clone()).challenges_version();
        let _open = Open(open);
        open.send_replace(challenges);
        gateways.have(namespace, version).await;
        proven(&mut order).await?;
    }
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(names.clone())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    order
        .finalize_csr(params.serialize_request(&key)?.der())
        .await
        .context("it does not take the request")?;
    let chain = order.poll_certificate(&RetryPolicy::default()).await?;
    Certificate::read(&wanted.directory_url, chain, Zeroizing::new(key.serialize_pem()))
        .and_then(|certificate| certificate.check(&names, OffsetDateTime::now_utc()))
        .context("its certificate is of no use")
}

/// The account with the server: the one that is kept, or a new one.
async fn account(wanted: &AcmeCertificate, store: &Store) -> anyhow::Result<Account> {
    let (directory, email) = (&wanted.directory_url, &wanted.email);
    let roots = Some(&wanted.ca_file).filter(|file| !file.is_empty()).map(Into::into);
    let server = Account::builder_with_http(Box::new(Transport(roots)));
    match store.account(directory, email) {
        Ok(Some(kept)) => return Ok(server.from_credentials(kept).await?),
        Ok(None) => {}
        Err(error) => tracing::warn!(directory, "{error:#}; a new account is made"),
    }
    let contact = format!("mailto:{email}");
    let contact: &[&str] = if email.is_empty() { &[] } else { &[&contact] };
    let new = NewAccount { contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) =
        server.create(&new, directory.clone(), None).await.context("it gives no account")?;
    store.keep_account(directory, email, &credentials).context("the account cannot be kept")?;
    tracing::info!(directory, email, "there is an account with an ACME server");
    Ok(account)
}

/// What has to be answered before the order is fulfilled.
async fn challenges(namespace: &str, names: &[String], order: &mut Order) -> anyhow::Result<Vec<Challenge>> {
    let mut challenges = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let host = authorization.identifier().to_string().to_ascii_lowercase();
        ensure!(names.contains(&host), "it asks about {host}, for which nothing was ordered");
        let Some(challenge) = authorization.challenge(ChallengeType::Http01) else {
            bail!("it does not offer to look at {host} by HTTP (http-01)");
        };
        let token = challenge.token.clone();
        // The alphabet of base64url (section 8.3): it becomes part of a path.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        ensure!(!token.is_empty() && token.chars().all(plain), "its token for {host} is none: {token:?}");
        let answer = challenge.key_authorization().as_str().to_owned();
        challenges.push(Challenge { namespace: namespace.to_owned(), host, token, answer });
    }
    Ok(challenges)
}

/// Has the server look, and waits for what it finds.
async fn proven(order: &mut Order) -> anyhow::Result<()> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        if let Some(mut challenge) = authorization.challenge(ChallengeType::Http01) {
            challenge.set_ready().await?;
        }
    }
    let outcome = order.poll_ready(&RetryPolicy::default()).await;
    if matches!(outcome, Ok(OrderStatus::Ready)) {
        return Ok(());
    }
    let found = found(order).await;
    match outcome {
        _ if !found.is_empty() => bail!("it was not convinced: {}", found.join("; ")),
        Ok(status) => bail!("the order is {status:?}"),
        Err(error) => Err(error.into()),
    }
}

/// What the server has against each host.
async fn found(order: &mut Order) -> Vec<String> {
    let mut found = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        if authorization.refresh().await.is_err() {
            continue;
        }
        let host = authorization.identifier().to_string();
        let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        found.extend(errors.map(|error| format!("{host}: {error}")));
    }
    found
}
