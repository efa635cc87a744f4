//! Reads certificates with x509-parser: keys, lifetimes, names, and whose signature they carry.

use anyhow::{Context, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

/// What one certificate says.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Kind and size of its key, as `RSA 4096`.
    pub key: String,
    /// Seconds from its not-before to its not-after.
    pub life: i64,
    /// Its not-after, seconds since 1970.
    pub expires: i64,
    /// URI names.
    pub uris: Vec<String>,
    /// Names of other kinds (DNS, addresses, mail ...).
    pub other_names: usize,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Whether it may sign certificates.
    pub authority: bool,
}

/// Reads certificates from PEM.
pub fn from_pem(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        bail!("no certificate in PEM text");
    }
    Ok(all)
}

/// Reads one certificate.
pub fn read(der: &CertificateDer<'_>) -> anyhow::Result<Seen> {
    let (_, certificate) = X509Certificate::from_der(der).context("a certificate cannot be read")?;
    let key = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        Ok(PublicKey::EC(point)) => format!("P-{}", point.key_size()),
        _ => "another kind of key".to_owned(),
    };
    let validity = certificate.validity();
    let (begins, expires) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let (mut uris, mut other_names) = (Vec::new(), 0);
    if let Some(names) = certificate.subject_alternative_name().context("its names cannot be read")? {
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => other_names += 1,
            }
        }
    }
    let serial = certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    Ok(Seen {
        key,
        life: expires - begins,
        expires,
        uris,
        other_names,
        serial,
        authority: certificate.is_ca(),
    })
}

/// Checks that each certificate of a chain, leaf first, is signed by the next, and the last by itself.
pub fn verify(chain: &[CertificateDer<'_>]) -> anyhow::Result<()> {
    let read =
        |der| Ok::<_, anyhow::Error>(X509Certificate::from_der(der).context("unreadable certificate")?.1);
    let parsed = chain.iter().map(|der| read(der)).collect::<anyhow::Result<Vec<_>>>()?;
    let Some(last) = parsed.last() else { bail!("an empty chain") };
    for (at, certificate) in parsed.iter().enumerate() {
        let issuer = parsed.get(at + 1).unwrap_or(last);
        certificate
            .verify_signature(Some(issuer.public_key()))
            .with_context(|| format!("certificate {} of the chain is not signed by the next", at + 1))?;
        if certificate.issuer() != issuer.subject() {
            bail!("certificate {} of the chain names another issuer than the next", at + 1);
        }
    }
    Ok(())
}

/// The chain that a peer showed, completed by the root that signed its last certificate, if it did not send it.
pub fn complete(shown: &[CertificateDer<'_>], root: &CertificateDer<'_>) -> Vec<CertificateDer<'static>> {
    let mut chain: Vec<_> = shown.iter().map(|c| c.clone().into_owned()).collect();
    if chain.last().is_none_or(|last| last != root) {
        chain.push(root.clone().into_owned());
    }
    chain
}

/// Seconds in words: the largest unit that divides them.
pub fn life(seconds: i64) -> String {
    for (unit, size) in [("d", 86_400), ("h", 3600), ("min", 60)] {
        if seconds >= size && seconds % size == 0 {
            return format!("{} {unit}", seconds / size);
        }
    }
    format!("{seconds} s")
}
