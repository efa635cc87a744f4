//! Times in format strings: `%START_TIME(...)%` and its like, a subset of strftime with Envoy's additions.
//!
//! Within a second only fractions of it change: each thread keeps what it wrote last in a format, and writes the fractions anew.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

use super::FormatError;
use crate::codec::digits;

/// The pieces of `%START_TIME(...)%`, a subset of strftime.
#[derive(Clone, Debug)]
pub(super) struct TimeFormat {
    pieces: Vec<TimePiece>,
    /// By the machine's time zone, in place of UTC.
    local: bool,
    /// No two that were parsed have the same.
    id: u64,
}

/// What was last written in a format.
struct Written {
    id: u64,
    /// Seconds since 1970.
    second: u64,
    text: Vec<u8>,
    /// Where fractions stand in it, and of how many digits.
    fractions: Vec<(usize, u8)>,
}

/// Formats whose last text a thread keeps.
const KEPT: usize = 8;

thread_local! {
    static WRITTEN: RefCell<Vec<Written>> = const { RefCell::new(Vec::new()) };
}

static NEXT: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Debug)]
enum TimePiece {
    Text(String),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Fraction(u8),
    Epoch,
    /// The day of the month, with a space before one digit.
    SpacedDay,
    DayOfYear,
    /// The last two digits of the year.
    ShortYear,
    /// How far the zone is from UTC, and what it is called.
    Offset,
    Zone,
    /// The name of the month, whole or its first three letters.
    MonthName(bool),
    DayName(bool),
}

impl TimeFormat {
    /// Times in UTC.
    pub(super) fn parse(source: Option<&str>) -> Result<Self, FormatError> {
        Self::with(source.unwrap_or("%Y-%m-%dT%H:%M:%E3SZ"), false)
    }

    /// Times in the machine's zone (`TZ`, or `/etc/localtime`).
    pub(super) fn local(source: Option<&str>) -> Result<Self, FormatError> {
        Self::with(source.unwrap_or("%Y-%m-%dT%H:%M:%E3S%z"), true)
    }

    fn with(source: &str, local: bool) -> Result<Self, FormatError> {
        let bad = || {
            FormatError::Arguments(
                "START_TIME".to_owned(),
                "takes %Y %y %m %d %e %j %b %B %a %A %H %M %S %s %f %1f to %9f %E1S to %E9S %F %D %T %R %z %Z and text",
            )
        };
        let mut rest = source;
        let mut pieces = Vec::new();
        let seconds =
            |digits| vec![TimePiece::Second, TimePiece::Text(".".to_owned()), TimePiece::Fraction(digits)];
        while let Some(start) = rest.find('%') {
            if start > 0 {
                pieces.push(TimePiece::Text(rest[..start].to_owned()));
            }
            let spec = &rest[start + 1..];
            let colon = || TimePiece::Text(":".to_owned());
            let dash = || TimePiece::Text("-".to_owned());
            let slash = || TimePiece::Text("/".to_owned());
            let text = |text: &str| vec![TimePiece::Text(text.to_owned())];
            let (length, mut made) = match spec.as_bytes() {
                [b'E', digit @ b'1'..=b'9', b'S', ..] => (3, seconds(digit - b'0')),
                [digit @ b'1'..=b'9', b'f', ..] => (2, vec![TimePiece::Fraction(digit - b'0')]),
                [b'f', ..] => (1, vec![TimePiece::Fraction(9)]),
                [b'Y', ..] => (1, vec![TimePiece::Year]),
                [b'y', ..] => (1, vec![TimePiece::ShortYear]),
                [b'm', ..] => (1, vec![TimePiece::Month]),
                [b'd', ..] => (1, vec![TimePiece::Day]),
                [b'e', ..] => (1, vec![TimePiece::SpacedDay]),
                [b'j', ..] => (1, vec![TimePiece::DayOfYear]),
                [b'b', ..] => (1, vec![TimePiece::MonthName(false)]),
                [b'B', ..] => (1, vec![TimePiece::MonthName(true)]),
                [b'a', ..] => (1, vec![TimePiece::DayName(false)]),
                [b'A', ..] => (1, vec![TimePiece::DayName(true)]),
                [b'H', ..] => (1, vec![TimePiece::Hour]),
                [b'M', ..] => (1, vec![TimePiece::Minute]),
                [b'S', ..] => (1, vec![TimePiece::Second]),
                [b's', ..] => (1, vec![TimePiece::Epoch]),
                [b'z', ..] if local => (1, vec![TimePiece::Offset]),
                [b'Z', ..] if local => (1, vec![TimePiece::Zone]),
                [b'z', ..] => (1, text("+0000")),
                [b'Z', ..] => (1, text("UTC")),
                [b'%', ..] => (1, text("%")),
                [b'F', ..] => (1, vec![TimePiece::Year, dash(), TimePiece::Month, dash(), TimePiece::Day]),
                [b'D', ..] => {
                    (1, vec![TimePiece::Month, slash(), TimePiece::Day, slash(), TimePiece::ShortYear])
                }
                [b'R', ..] => (1, vec![TimePiece::Hour, colon(), TimePiece::Minute]),
                [b'T', ..] => {
                    (1, vec![TimePiece::Hour, colon(), TimePiece::Minute, colon(), TimePiece::Second])
                }
                _ => return Err(bad()),
            };
            pieces.append(&mut made);
            rest = &spec[length..];
        }
        if !rest.is_empty() {
            pieces.push(TimePiece::Text(rest.to_owned()));
        }
        Ok(Self { pieces, local, id: NEXT.fetch_add(1, Relaxed) })
    }

    pub(super) fn write(&self, at: SystemTime, out: &mut Vec<u8>) {
        let Ok(since) = at.duration_since(UNIX_EPOCH) else { return drop(self.write_anew(at, out)) };
        WRITTEN.with_borrow_mut(|all| {
            let known = all.iter().position(|written| written.id == self.id);
            let place = known.unwrap_or_else(|| {
                if all.len() == KEPT {
                    all.remove(0);
                }
                all.push(Written { id: self.id, second: u64::MAX, text: Vec::new(), fractions: Vec::new() });
                all.len() - 1
            });
            let Some(written) = all.get_mut(place) else { return };
            if written.second != since.as_secs() {
                written.text.clear();
                written.fractions = self.write_anew(at, &mut written.text);
                written.second = since.as_secs();
            }
            let start = out.len();
            out.extend_from_slice(&written.text);
            for (at, count) in &written.fractions {
                let end = start + at + usize::from(*count);
                let mut rest = since.subsec_nanos() / 10_u32.pow(9 - u32::from(*count));
                for digit in out[start + at..end].iter_mut().rev() {
                    *digit = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
            }
        });
    }

    /// Gives where in the text fractions of a second stand.
    fn write_anew(&self, at: SystemTime, out: &mut Vec<u8>) -> Vec<(usize, u8)> {
        let start = out.len();
        let mut fractions = Vec::new();
        let at = OffsetDateTime::from(at);
        let (at, zone) = if self.local { here(at) } else { (at, String::new()) };
        let ((year, month, day), (hour, minute, second)) = (at.to_calendar_date(), at.to_hms());
        for piece in &self.pieces {
            match piece {
                TimePiece::Text(t) => out.extend_from_slice(t.as_bytes()),
                // A clock before the year 0 is not worth a sign.
                TimePiece::Year => digits::padded(out, year.unsigned_abs(), 4),
                TimePiece::Month => digits::padded(out, u8::from(month).into(), 2),
                TimePiece::Day => digits::padded(out, day.into(), 2),
                TimePiece::Hour => digits::padded(out, hour.into(), 2),
                TimePiece::Minute => digits::padded(out, minute.into(), 2),
                TimePiece::Second => digits::padded(out, second.into(), 2),
                TimePiece::Fraction(count) => {
                    let digits = at.nanosecond() / 10_u32.pow(9 - u32::from(*count));
                    fractions.push((out.len() - start, *count));
                    digits::padded(out, digits, (*count).into());
                }
                TimePiece::ShortYear => digits::padded(out, year.unsigned_abs() % 100, 2),
                TimePiece::SpacedDay if day < 10 => {
                    out.push(b' ');
                    digits::padded(out, day.into(), 1);
                }
                TimePiece::SpacedDay => digits::padded(out, day.into(), 2),
                TimePiece::DayOfYear => digits::padded(out, at.ordinal().into(), 3),
                TimePiece::MonthName(whole) => name(out, &month.to_string(), *whole),
                TimePiece::DayName(whole) => name(out, &at.weekday().to_string(), *whole),
                TimePiece::Offset => {
                    let (hours, minutes, _) = at.offset().as_hms();
                    out.push(if at.offset().is_negative() { b'-' } else { b'+' });
                    digits::padded(out, hours.unsigned_abs().into(), 2);
                    digits::padded(out, minutes.unsigned_abs().into(), 2);
                }
                TimePiece::Zone => out.extend_from_slice(zone.as_bytes()),
                TimePiece::Epoch => digits::number(out, at.unix_timestamp()),
            }
        }
        fractions
    }
}

/// A moment in the machine's zone, and what that is called then. A zone that is not known is UTC.
fn here(at: OffsetDateTime) -> (OffsetDateTime, String) {
    let zone = jiff::tz::TimeZone::system();
    let Ok(moment) = jiff::Timestamp::from_second(at.unix_timestamp()) else { return (at, "UTC".to_owned()) };
    let info = zone.to_offset_info(moment);
    match time::UtcOffset::from_whole_seconds(info.offset().seconds()) {
        Ok(offset) => (at.to_offset(offset), info.abbreviation().to_owned()),
        Err(_) => (at, "UTC".to_owned()),
    }
}

/// A name in English, or its first three letters.
fn name(out: &mut Vec<u8>, name: &str, whole: bool) {
    let name = name.as_bytes();
    out.extend_from_slice(if whole { name } else { &name[..3.min(name.len())] });
}
