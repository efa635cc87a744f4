//! Certificate authorities: root, intermediate, and the leaves that the intermediate signs.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, PublicKeyData, RevokedCertParams, RsaKeySize, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::csr::CheckedRequest;
use crate::spiffe::SpiffeId;

/// How far before now certificates start to be valid, for clocks that are behind.
pub const CLOCK_SKEW: Duration = Duration::minutes(5);

/// What an authority could not do.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The X.509 library refused.
    #[error("certificate authority: {0}")]
    Library(#[from] rcgen::Error),
    /// Stored text is not an authority.
    #[error("certificate authority: {0}")]
    Stored(String),
}

/// An authority's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA of 4096 bits: the root's.
    Rsa4096,
    /// RSA of 2048 bits: the intermediate's.
    Rsa2048,
    /// ECDSA P-256: made in no time.
    P256,
    /// ECDSA P-384.
    P384,
}

impl KeyKind {
    /// Makes a key of this kind; PEM.
    pub fn make(self) -> Result<Zeroizing<String>, AuthorityError> {
        Ok(Zeroizing::new(self.generate()?.serialize_pem()))
    }

    fn generate(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
            Self::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Self::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        }
    }
}

/// A certificate authority: its certificate and its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: Zeroizing<String>,
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

fn authority_params(
    name: &str,
    path_length: u8,
    now: OffsetDateTime,
    life: Duration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "cluster.local");
    // A name of its own for each: revocation lists are found by their issuer's name, and while one authority replaces
    // another there are two.
    let serial = random_serial()?;
    let mark: String = serial[..4].iter().map(|b| format!("{b:02x}")).collect();
    subject.push(DnType::CommonName, format!("{name} {mark}"));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
    Ok(params)
}

/// 127 random bits (RFC 5280, section 4.1.2.2: positive, at most 20 octets).
fn random_serial() -> Result<[u8; 16], AuthorityError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| AuthorityError::Stored("the system gives no random numbers".to_owned()))?;
    serial[0] &= 0x7f;
    Ok(serial)
}

impl Authority {
    /// Makes a self-signed root.
    pub fn root(key: KeyKind, now: OffsetDateTime, life: Duration) -> Result<Self, AuthorityError> {
        let pair = key.generate()?;
        let params = authority_params("Weft root", 1, now, life)?;
        let certificate = params.self_signed(&pair)?;
        Self::assemble(certificate.pem(), pair)
    }

    /// Makes an intermediate that this authority signs; it may sign leaves only.
    pub fn intermediate(
        &self,
        key: KeyKind,
        now: OffsetDateTime,
        life: Duration,
    ) -> Result<Self, AuthorityError> {
        let pair = key.generate()?;
        let mut params = authority_params("Weft intermediate", 0, now, life)?;
        params.use_authority_key_identifier_extension = true;
        params.not_after = params.not_after.min(self.not_after);
        let certificate = params.signed_by(&pair, &self.issuer)?;
        Self::assemble(certificate.pem(), pair)
    }

    /// Makes the certificate of an intermediate whose key is elsewhere: for the key of a request that was checked, and none of
    /// the request's names. PEM.
    pub fn certify(
        &self,
        request: &CheckedRequest,
        now: OffsetDateTime,
        life: Duration,
    ) -> Result<String, AuthorityError> {
        let mut params = authority_params("Weft intermediate", 0, now, life)?;
        params.use_authority_key_identifier_extension = true;
        params.not_after = params.not_after.min(self.not_after);
        Ok(params.signed_by(&request.key, &self.issuer)?.pem())
    }

    /// Takes up an authority from its certificate and key in PEM, which may be the same text. Whether they belong together is
    /// checked.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let pair = KeyPair::from_pem(key_of(key_pem))?;
        let authority = Self::assemble(certificate_pem.to_owned(), pair)?;
        let public = x509_parser::parse_x509_certificate(&authority.certificate)
            .map_err(|e| AuthorityError::Stored(e.to_string()))?
            .1
            .public_key()
            .raw
            .to_vec();
        if public != authority.issuer.key().subject_public_key_info() {
            return Err(AuthorityError::Stored("the key does not belong to the certificate".to_owned()));
        }
        Ok(authority)
    }

    fn assemble(certificate_pem: String, pair: KeyPair) -> Result<Self, AuthorityError> {
        let stored = |e: &dyn std::fmt::Display| AuthorityError::Stored(e.to_string());
        let certificate = crate::pem::certificates(certificate_pem.as_bytes())
            .map_err(|e| stored(&e))?
            .into_iter()
            .next()
            .ok_or_else(|| stored(&"no certificate"))?;
        let facts = crate::inspect::facts(&certificate).map_err(|e| stored(&e))?;
        if !facts.is_ca {
            return Err(stored(&"the certificate is not an authority's (basicConstraints CA)"));
        }
        let key_pem = Zeroizing::new(pair.serialize_pem());
        // Of a text with several, the first is the authority's own.
        let certificate_pem = crate::pem::encode(&certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, pair)?;
        Ok(Self { certificate, certificate_pem, key_pem, issuer, not_after: facts.not_after })
    }

    /// Whether `root` signed this authority's certificate, it counts now, and it may sign certificates and revocation lists.
    ///
    /// # Errors
    /// It is not so; says what is wrong.
    pub fn is_under(&self, root: &CertificateDer<'_>, now: OffsetDateTime) -> Result<(), AuthorityError> {
        let bad = |e: &dyn std::fmt::Display| AuthorityError::Stored(e.to_string());
        let parse = |der| x509_parser::parse_x509_certificate(der).map(|(_, parsed)| parsed);
        let root = parse(root).map_err(|e| bad(&e))?;
        let own = parse(&self.certificate).map_err(|e| bad(&e))?;
        if own.issuer() != root.subject() || own.verify_signature(Some(root.public_key())).is_err() {
            return Err(bad(&format!(
                "the certificate is issued by {:?}, and not by the mesh's root {:?}",
                own.issuer().to_string(),
                root.subject().to_string()
            )));
        }
        if own.subject() == root.subject() {
            return Err(bad(
                &"the certificate has the root's own name; an intermediate needs one of its own",
            ));
        }
        let usage = own.key_usage().map_err(|e| bad(&e))?;
        if usage.is_none_or(|u| !u.value.key_cert_sign() || !u.value.crl_sign()) {
            return Err(bad(&"the certificate's key usage lacks keyCertSign or cRLSign"));
        }
        let validity = own.validity();
        if now < validity.not_before.to_datetime() || now >= validity.not_after.to_datetime() {
            return Err(bad(&format!(
                "the certificate is valid from {} to {}, and not now",
                validity.not_before, validity.not_after
            )));
        }
        Ok(())
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its private key as PEM, to be stored where only the control plane reads.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Until when it can sign.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Signs a workload's certificate: for the request's key, with `id` as its only name. It never outlives the authority.
    pub fn sign(
        &self,
        request: &CheckedRequest,
        id: &SpiffeId,
        now: OffsetDateTime,
        life: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let params = self.leaf_params(vec![SanType::URI(id.as_str().try_into()?)], now, life)?;
        Ok(params.signed_by(&request.key, &self.issuer)?.der().clone())
    }

    /// Makes key and certificate for a server of the control plane itself: its SPIFFE id, DNS names and addresses.
    pub fn server(
        &self,
        id: &SpiffeId,
        dns: &[&str],
        addresses: &[std::net::IpAddr],
        now: OffsetDateTime,
        life: Duration,
    ) -> Result<(CertificateDer<'static>, rustls_pki_types::PrivatePkcs8KeyDer<'static>), AuthorityError>
    {
        let key = KeyPair::generate()?;
        let mut names = vec![SanType::URI(id.as_str().try_into()?)];
        for name in dns {
            names.push(SanType::DnsName((*name).try_into()?));
        }
        names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        let params = self.leaf_params(names, now, life)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.der().clone(), key.serialize_der().into()))
    }

    /// Signs a list of revoked serial numbers (big-endian) with the moment of each revocation; PEM. It holds until this
    /// authority's own end, so that a control plane that is away makes nobody's peers doubtful.
    pub fn revocation_list(
        &self,
        revoked: &[(Vec<u8>, OffsetDateTime)],
        number: u64,
        now: OffsetDateTime,
    ) -> Result<String, AuthorityError> {
        let revoked_certs = revoked.iter().map(|(serial, at)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: *at,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now - CLOCK_SKEW,
            next_update: self.not_after.max(now + Duration::hours(1)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    fn leaf_params(
        &self,
        names: Vec<SanType>,
        now: OffsetDateTime,
        life: Duration,
    ) -> Result<CertificateParams, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - CLOCK_SKEW;
        params.not_after = (now + life).min(self.not_after);
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        Ok(params)
    }
}

/// The private key of a text that may begin with something else; the text as it is where there is none.
fn key_of(pem: &str) -> &str {
    let begins = pem.match_indices("-----BEGIN ").map(|(at, _)| &pem[at..]);
    let is_key = |block: &&str| block.lines().next().is_some_and(|line| line.contains("PRIVATE KEY-----"));
    begins.into_iter().find(is_key).unwrap_or(pem)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{csr, inspect};

    pub(crate) fn small() -> (Authority, Authority) {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let root = Authority::root(KeyKind::P256, now, Duration::days(3650)).unwrap();
        let intermediate = root.intermediate(KeyKind::P256, now, Duration::days(365)).unwrap();
        (root, intermediate)
    }

    #[test]
    fn a_leaf_has_the_callers_name_and_no_other_and_starts_before_now() {
        let (_, intermediate) = small();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        // The request claims to be somebody else.
        let made = csr::make(&"spiffe://cluster.local/ns/x/sa/admin".parse().unwrap()).unwrap();
        let id = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let leaf = intermediate.sign(&csr::check(&made.csr).unwrap(), &id, now, Duration::hours(24)).unwrap();
        let facts = inspect::facts(&leaf).unwrap();
        assert_eq!(facts.uri_sans, ["spiffe://cluster.local/ns/a/sa/b"]);
        assert!(facts.dns_sans.is_empty() && facts.subject.is_empty() && !facts.is_ca);
        assert_eq!(facts.key, "P-256");
        assert_eq!(facts.not_before, now - CLOCK_SKEW);
        assert_eq!(facts.not_after, now + Duration::hours(24));
    }

    #[test]
    fn a_leaf_never_outlives_its_authority() {
        let (_, intermediate) = small();
        let late = intermediate.not_after() - Duration::hours(1);
        let made = csr::make(&"spiffe://a/b".parse().unwrap()).unwrap();
        let id = "spiffe://a/b".parse().unwrap();
        let leaf =
            intermediate.sign(&csr::check(&made.csr).unwrap(), &id, late, Duration::hours(24)).unwrap();
        assert_eq!(inspect::facts(&leaf).unwrap().not_after, intermediate.not_after());
    }

    #[test]
    fn an_authority_comes_back_from_its_pem_and_a_foreign_key_is_refused() {
        let (root, intermediate) = small();
        let again = Authority::load(root.certificate_pem(), root.key_pem()).unwrap();
        assert_eq!(again.certificate(), root.certificate());
        assert!(Authority::load(root.certificate_pem(), intermediate.key_pem()).is_err());
    }

    #[test]
    fn certificate_and_key_may_stand_in_one_text_in_any_order() {
        let (root, other) = small();
        let (certificate, key) = (root.certificate_pem().to_owned(), root.key_pem().to_owned());
        for both in [certificate.clone() + &key, key.clone() + &certificate] {
            let again = Authority::load(&both, &both).unwrap();
            assert_eq!((again.certificate(), again.key_pem()), (root.certificate(), root.key_pem()));
        }
        assert!(Authority::load(&certificate, &certificate).is_err());
        assert!(Authority::load(&certificate, &(certificate.clone() + other.key_pem())).is_err());
    }
}
