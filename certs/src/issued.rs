//! Whether a certificate is what was asked for, where somebody else issued it: exactly the names of the request, and good for both ends
//! of mutual TLS and nothing else.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::asked::{
    ALTERNATIVE_NAMES, CLIENT, DIGITAL_SIGNATURE, KEY_USAGE, Names, PURPOSES, SERVER, SIGNS_OTHERS, dotted,
    key_usage, purposes,
};
use crate::csr::CheckedRequest;

/// Whether this certificate has the names that the request asks for and no more, and may be shown by servers and by clients.
///
/// # Errors
/// It is not: why, and what to change at the issuer, in words.
pub fn answers(certificate: &CertificateDer<'_>, request: &CheckedRequest) -> Result<(), String> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err("something follows it".to_owned());
    }
    let asked = request.names();
    let subject = parsed.subject().to_string();
    if !subject.is_empty() && subject != asked.subject {
        return Err(format!(
            "its subject is {subject:?}, which was not asked for: have the issuer's profile take the subject from the request"
        ));
    }
    let value = |kind: &[u8]| {
        let mut all = parsed.extensions().iter().filter(|extension| extension.oid.as_bytes() == kind);
        match (all.next(), all.next()) {
            (_, Some(_)) => Err(format!("it has the extension {} twice", dotted(kind))),
            (found, None) => Ok(found.map(|extension| extension.value)),
        }
    };
    let mut given = Names::default();
    if let Some(names) = value(ALTERNATIVE_NAMES)? {
        given.take_alternative(names);
    }
    if sorted(&given) != sorted(asked) {
        return Err(format!(
            "it is for {given}, and {asked} was asked for: have the issuer's profile take the alternative names from the request, all \
             of them and no others"
        ));
    }
    if let Some(usage) = value(KEY_USAGE)? {
        let usage = key_usage(usage).ok_or("its key usage cannot be read")?;
        if usage & SIGNS_OTHERS != 0 {
            return Err("its key may sign certificates or revocation lists: have the issuer's profile leave keyCertSign and cRLSign out".to_owned());
        }
        if usage & DIGITAL_SIGNATURE == 0 {
            return Err(
                "its key usage lacks digitalSignature, which TLS needs: have the issuer's profile give it"
                    .to_owned(),
            );
        }
    }
    let Some(list) = value(PURPOSES)? else { return Ok(()) };
    let all = purposes(list).ok_or("its extended key usage cannot be read")?;
    if let Some(other) = all.iter().find(|purpose| ![SERVER, CLIENT].contains(*purpose)) {
        return Err(format!(
            "its extended key usage has {}: have the issuer's profile give serverAuth and clientAuth alone",
            dotted(other)
        ));
    }
    for (purpose, name) in [(SERVER, "serverAuth"), (CLIENT, "clientAuth")] {
        if !all.contains(&purpose) {
            return Err(format!(
                "its extended key usage lacks {name}, and every proxy is a server to some and a client to others: have the issuer's \
                 profile give serverAuth and clientAuth both"
            ));
        }
    }
    Ok(())
}

/// Names in an order that does not depend on who wrote them; those of DNS are the same in either case.
fn sorted(names: &Names) -> [Vec<String>; 4] {
    let Names { uris, dns, addresses, others, .. } = names;
    let dns = dns.iter().map(|name| name.to_ascii_lowercase()).collect();
    let addresses = addresses.iter().map(ToString::to_string).collect();
    let mut all = [uris.clone(), dns, addresses, others.clone()];
    all.iter_mut().for_each(|kind| kind.sort());
    all
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
        KeyUsagePurpose, SanType,
    };

    use super::*;

    #[test]
    fn what_is_issued_is_what_was_asked_for() {
        let id = "spiffe://cluster.local/ns/istio-system/sa/istiod".parse().unwrap();
        let made = crate::csr::make_server(&id, &["istiod", "Istiod.local"], &["10.0.0.1".parse().unwrap()]);
        let request = crate::csr::check(&made.unwrap().csr).unwrap();
        let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let issued = |change: &dyn Fn(&mut CertificateParams)| {
            let mut asked = CertificateSigningRequestParams::from_der(&request.der().into()).unwrap();
            asked.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            asked.params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            change(&mut asked.params);
            let certificate = asked.signed_by(&issuer).unwrap();
            answers(certificate.der(), &request)
        };
        issued(&|_| {}).unwrap();
        issued(&|p| p.subject_alt_names.reverse()).unwrap();
        issued(&|p| p.subject_alt_names[2] = SanType::DnsName("istiod.LOCAL".try_into().unwrap())).unwrap();
        issued(&|p| p.extended_key_usages.clear()).unwrap();
        issued(&|p| p.key_usages.push(KeyUsagePurpose::KeyEncipherment)).unwrap();
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        type Change<'a> = &'a dyn Fn(&mut CertificateParams);
        let cases: [(Change<'_>, &str); 13] = [
            (&|p| p.subject_alt_names.push(dns("else.example")), "else.example"),
            (&|p| drop(p.subject_alt_names.remove(1)), "all of them and no others"),
            (&|p| p.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 2].into())), "10.0.0.2"),
            (&|p| drop(p.subject_alt_names.pop()), "10.0.0.1 was asked for"),
            (&|p| p.subject_alt_names.push(SanType::Rfc822Name("a@b.c".try_into().unwrap())), "a@b.c"),
            (&|p| p.subject_alt_names.clear(), "it is for nobody"),
            (&|p| p.distinguished_name.push(DnType::OrganizationName, "system:masters"), "system:masters"),
            (
                &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
                "lacks serverAuth, and every proxy",
            ),
            (&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], "lacks clientAuth"),
            (&|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning), "1.3.6.1.5.5.7.3.3"),
            (&|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any), "2.5.29.37.0"),
            (&|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign), "keyCertSign"),
            (&|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement], "lacks digitalSignature"),
        ];
        for (change, words) in cases {
            let error = issued(change).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
