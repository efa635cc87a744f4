//! Times in format strings: `%START_TIME(...)%` and its like, a subset of strftime with Envoy's additions.

use std::time::SystemTime;

use time::OffsetDateTime;

use super::FormatError;
use crate::codec::digits;

/// The pieces of `%START_TIME(...)%`, a subset of strftime.
#[derive(Clone, Debug)]
pub(super) struct TimeFormat(Vec<TimePiece>);

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
    /// The name of the month, whole or its first three letters.
    MonthName(bool),
    DayName(bool),
}

impl TimeFormat {
    pub(super) fn parse(source: Option<&str>) -> Result<Self, FormatError> {
        let bad = || {
            FormatError::Arguments(
                "START_TIME".to_owned(),
                "takes %Y %y %m %d %e %j %b %B %a %A %H %M %S %s %f %1f to %9f %E1S to %E9S %F %D %T %R %z %Z and text",
            )
        };
        let mut rest = source.unwrap_or("%Y-%m-%dT%H:%M:%E3SZ");
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
        Ok(Self(pieces))
    }

    pub(super) fn write(&self, at: SystemTime, out: &mut Vec<u8>) {
        let at = OffsetDateTime::from(at);
        let ((year, month, day), (hour, minute, second)) = (at.to_calendar_date(), at.to_hms());
        for piece in &self.0 {
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
                TimePiece::Epoch => digits::number(out, at.unix_timestamp()),
            }
        }
    }
}

/// A name in English, or its first three letters.
fn name(out: &mut Vec<u8>, name: &str, whole: bool) {
    let name = name.as_bytes();
    out.extend_from_slice(if whole { name } else { &name[..3.min(name.len())] });
}
