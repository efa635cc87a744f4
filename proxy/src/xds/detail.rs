//! The `error_detail` of a NACK, and its event.

use weft_events::{Event, Kind, Outcome, Severity, emit};
use xds_protos::ResourceType;
use xds_protos::google::rpc::Status;

use super::Rejection;

/// `INTERNAL`, which is what Envoy sends.
const CODE: i32 = 13;

/// Longer texts are cut: they end in somebody's log.
const MAX_LEN: usize = 16 * 1024;

/// All rejections of a response as one status; none when there are none.
pub(super) fn error_detail(rejections: &[Rejection]) -> Option<Status> {
    if rejections.is_empty() {
        return None;
    }
    let mut message = String::new();
    for Rejection { name, reason } in rejections {
        if !message.is_empty() {
            message.push('\n');
        }
        message.push_str(name);
        message.push_str(": ");
        message.push_str(reason);
        if message.len() > MAX_LEN {
            let cut = (0..=MAX_LEN).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(cut);
            message.push_str("...");
            break;
        }
    }
    Some(Status { code: CODE, message, details: Vec::new() })
}

/// Tells of what was refused.
pub(super) fn tell(kind: ResourceType, rejections: &[Rejection]) {
    for Rejection { name, reason } in rejections {
        emit(Kind::ConfigRejected, || {
            let words = format!("{} {name} was refused: {reason}", kind.short());
            Event::new(Kind::ConfigRejected, Outcome::Failed, Severity::Medium, "xds", words)
                .with("resource", name.to_string())
                .with("resource_type", kind.type_url())
                .with("reason", reason.to_string())
                .with("operation", "apply a pushed resource")
                .with("source", "control-plane")
        });
    }
}

/// Why the workload is not well.
pub(super) fn unwell(reason: &str) -> Status {
    Status { code: CODE, message: reason.to_owned(), details: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_reasons_are_listed_and_a_long_list_is_cut_between_characters() {
        let one = |name: &str, reason: &str| Rejection { name: name.into(), reason: reason.into() };
        assert_eq!(error_detail(&[]), None);
        assert_eq!(error_detail(&[one("a", "bad"), one("b", "worse")]).unwrap().message, "a: bad\nb: worse");
        let long = error_detail(&[one("a", &"é".repeat(MAX_LEN))]).unwrap().message;
        assert!(long.len() <= MAX_LEN + 3 && long.ends_with("é..."));
    }
}
