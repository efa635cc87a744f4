//! `/weft/tap`: requests as they end, one line of JSON for each, for as long as somebody reads.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use hyper::body::{Body, Frame};
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::telemetry::tap::{Wanted, Watch};

/// So often it is said how many requests were dropped, or nothing, by which it is noticed that the reader has gone.
const TICK: Duration = Duration::from_secs(1);

/// Lines, without an end of their own.
pub(super) struct Lines {
    watch: Watch,
    /// So many more requests; none once the watch has ended.
    left: u64,
    tick: Interval,
}

/// Begins to watch by the parameters of a query.
///
/// # Errors
/// A parameter is wrong, or too many watch already.
pub(super) fn begin(parameters: impl Iterator<Item = (String, String)>) -> Result<Lines, String> {
    let mut wanted = Wanted::default();
    let mut left = u64::MAX;
    for (name, value) in parameters {
        match name.as_str() {
            "method" => wanted.method = Some(value),
            "path" => wanted.path = Some(value),
            "from" => wanted.from = Some(value),
            "direction" if value == "inbound" || value == "outbound" => wanted.direction = Some(value),
            "direction" => return Err(format!("direction: {value:?}: there are inbound and outbound")),
            "status" => wanted.status = Some(status(&value)?),
            "max" => left = value.parse().map_err(|_| format!("max: {value:?} is no number"))?,
            "header" => wanted.headers.push(field(&value)?),
            other => {
                return Err(format!(
                    "{other}: there are method, path, status, from, header, direction and max"
                ));
            }
        }
    }
    let watch = Watch::begin(wanted).ok_or("as many watch this proxy as may; end one of the others")?;
    Ok(Lines::new(watch, left))
}

impl Lines {
    fn new(watch: Watch, left: u64) -> Self {
        let mut tick = interval(TICK);
        // Whoever has not read for a while is not told of each tick of it.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { watch, left, tick }
    }

    /// How many requests were dropped, if any were.
    fn dropped(&self) -> Option<String> {
        let dropped = self.watch.dropped();
        (dropped > 0).then(|| format!("{}\n", json!({ "dropped": dropped })))
    }

    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        // Before requests, of which there may be always one: whoever is too slow is to know it. Whoever counts requests reads nothing
        // after the last.
        let ticked = self.tick.poll_tick(cx).is_ready();
        if (ticked || self.left <= 1)
            && let Some(line) = self.dropped()
        {
            return Poll::Ready(Some(line));
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match self.watch.poll(cx) {
            Poll::Ready(Some(tapped)) => {
                self.left -= 1;
                Poll::Ready(Some(format!("{}\n", tapped.json())))
            }
            Poll::Ready(None) => {
                self.left = 0;
                Poll::Ready(self.dropped())
            }
            Poll::Pending if ticked => Poll::Ready(Some("\n".to_owned())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A field by its name, or by name and value.
fn field(text: &str) -> Result<(HeaderName, Option<String>), String> {
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name.trim(), Some(value.trim().to_owned())),
        None => (text.trim(), None),
    };
    let known = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes());
    Ok((known.map_err(|_| format!("header: {name:?} is no name of a field"))?, value))
}

/// A status, or a class of them: 404, 4xx.
fn status(text: &str) -> Result<u16, String> {
    let class = text.strip_suffix("xx").and_then(|digit| digit.parse().ok()).filter(|d| (1..6).contains(d));
    let whole = || text.parse().ok().filter(|status| (100..600).contains(status));
    class.or_else(whole).ok_or_else(|| format!("status: {text:?}: write 404, or 4xx"))
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.poll_line(cx).map(|line| line.map(|line| Ok(Frame::data(line.into()))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use tokio::time::Instant;

    use super::*;
    use crate::telemetry::record::Class;
    use crate::telemetry::record::entry::tests::entry;
    use crate::telemetry::tap::tell;

    #[tokio::test]
    async fn whoever_is_too_slow_is_told_before_the_next_request_and_before_the_last() {
        let wanted = Wanted { path: Some("/only-told-late".into()), ..Wanted::default() };
        let mut lines = Lines::new(Watch::begin(wanted).unwrap(), 2);
        let mut one = entry(Class::Good, "1");
        one.path = "/only-told-late".into();
        let one = Arc::new(one);
        // More than the queue holds, by number.
        (0..1030).for_each(|_| tell(&one, None, None));
        let next = |lines: &mut Lines| match lines.poll_line(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(line) => line,
            Poll::Pending => panic!("something waits"),
        };
        // The tick is due.
        lines.tick.reset_at(Instant::now() - TICK);
        let dropped: serde_json::Value = serde_json::from_str(&next(&mut lines).unwrap()).unwrap();
        assert!(dropped["dropped"].as_u64().unwrap() >= 6, "{dropped}");
        assert!(next(&mut lines).unwrap().contains("/only-told-late"));
        // There is room for one.
        (0..2).for_each(|_| tell(&one, None, None));
        assert!(next(&mut lines).unwrap().contains("dropped"));
        assert!(next(&mut lines).unwrap().contains("/only-told-late"));
        assert_eq!(next(&mut lines), None);
    }

    #[test]
    fn a_status_is_one_or_a_class() {
        assert_eq!([status("404"), status("5xx"), status("200")], [Ok(404), Ok(5), Ok(200)]);
        for wrong in ["4", "9xx", "xx", "099", "600", ""] {
            assert!(status(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_is_not_known_is_refused() {
        let refused = |name: &str, value: &str| {
            begin([(name.to_owned(), value.to_owned())].into_iter()).err().unwrap_or_default()
        };
        assert!(refused("methd", "GET").contains("there are method"));
        assert!(refused("direction", "up").contains("inbound"));
        assert!(refused("max", "some").contains("no number"));
        assert!(refused("header", "a b: c").contains("no name of a field"));
    }
}
