//! Environment variables of istiod that say nothing to Weft: whoever brings an installation over is told, and what would change who
//! is trusted is refused.

use std::collections::BTreeSet;

use anyhow::bail;

/// What begins the names of istiod's settings.
const OF_ISTIOD: [&str; 2] = ["PILOT_", "CITADEL_"];
/// What Kubernetes puts into pods for a Service of a name that begins like that.
const OF_SERVICES: [&str; 3] = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"];

/// Variables that have no effect, each with the values that say what Weft does anyway, and what to do otherwise.
const OBSOLETE: [(&str, &[&str], &str); 2] = [
    (
        "PILOT_TRACE_SAMPLING",
        &[],
        "set tracing.sampling in MeshConfig's defaultConfig, or randomSamplingPercentage in a Telemetry",
    ),
    (
        "PILOT_DISCOVERY_REFRESH_DELAY",
        &[],
        "changes are not polled for; PILOT_DEBOUNCE_AFTER and PILOT_DEBOUNCE_MAX say how long they are gathered",
    ),
];

/// What is to be said of these variables; `known` are those that flags read.
///
/// # Errors
/// One of them asks for what Weft does not do, and whoever relies on it would be mistaken about who signs.
pub(crate) fn look(
    variables: impl IntoIterator<Item = (String, String)>,
    known: &BTreeSet<String>,
) -> anyhow::Result<Vec<String>> {
    let mut doubts = Vec::new();
    for (name, value) in variables {
        if name == "ENABLE_CA_SERVER" && !matches!(value.trim(), "" | "true" | "1") {
            bail!(
                "ENABLE_CA_SERVER={value}: the control plane is always the certificate authority of its proxies; take the variable away, and \
                 let --ca say who signs"
            );
        }
        if let Some((_, as_ever, advice)) = OBSOLETE.iter().find(|(known, ..)| *known == name) {
            if !as_ever.contains(&value.trim()) {
                doubts.push(format!("{name}={value} has no effect: {advice}"));
            }
        } else if OF_ISTIOD.iter().any(|prefix| name.starts_with(prefix))
            && !known.contains(&name)
            && !OF_SERVICES.iter().any(|part| name.contains(part))
        {
            doubts.push(format!(
                "{name} is no setting of Weft's, and has no effect; docs/tuning.md says which are, and where the others have their home"
            ));
        }
    }
    doubts.sort();
    Ok(doubts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> anyhow::Result<Vec<String>> {
        let known = ["PILOT_PUSH_THROTTLE".to_owned()].into();
        look(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())), &known)
    }

    #[test]
    fn what_has_no_effect_is_told_and_what_would_be_a_mistake_is_refused() {
        let fine = [
            ("PILOT_PUSH_THROTTLE", "5"),
            ("ENABLE_CA_SERVER", "true"),
            ("PILOT_SERVICE_HOST", "10.0.0.1"),
            ("PILOT_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ];
        assert_eq!(of(&fine).unwrap(), [] as [&str; 0]);
        let told = of(&[
            ("PILOT_DISCOVERY_REFRESH_DELAY", "10s"),
            ("PILOT_TRACE_SAMPLING", "1"),
            ("PILOT_ENABLE_MAGIC", "true"),
        ])
        .unwrap();
        assert_eq!(told.len(), 3);
        assert!(told[0].contains("PILOT_DEBOUNCE_AFTER"), "{told:?}");
        assert!(told[1].contains("PILOT_ENABLE_MAGIC is no setting of Weft's"), "{told:?}");
        assert!(of(&[("ENABLE_CA_SERVER", "false")]).unwrap_err().to_string().contains("--ca"));
    }
}
