//! Points in time as logs write them, in microseconds since 1970 (UTC where a zone is written).

use time::{Date, Month};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// The Julian day of 1970-01-01.
const EPOCH_DAY: i64 = 2_440_588;
const SECOND: i64 = 1_000_000;

/// "2026-01-31T23:59:59.123456Z", or with an offset (RFC 3339).
pub(super) fn rfc3339(text: &str) -> Option<i64> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let mut parts = date.splitn(3, '-');
    let year = number(parts.next()?)?;
    let month = u8::try_from(number(parts.next()?)?).ok()?;
    let day = day_number(year, month, parts.next()?)?;
    let (clock, offset) = match rest.strip_suffix(['Z', 'z']) {
        Some(clock) => (clock, 0),
        None => {
            let (clock, zone) = rest.split_at_checked(rest.rfind(['+', '-'])?)?;
            (clock, offset_minutes(&zone.replacen(':', "", 1))?)
        }
    };
    Some((day * 86_400 - offset * 60) * SECOND + time_of_day(clock)?)
}

/// "31/Jan/2026:23:59:59 +0100" (nginx), "31/Jan/2026:23:59:59.123" (HAProxy, in the zone of its machine).
pub(super) fn common_log(text: &str) -> Option<i64> {
    let (moment, offset) = match text.split_once(' ') {
        Some((moment, zone)) => (moment, offset_minutes(zone)?),
        None => (text, 0),
    };
    let (date, clock) = moment.split_once(':')?;
    let mut parts = date.splitn(3, '/');
    let (day, month, year) = (parts.next()?, parts.next()?, number(parts.next()?)?);
    let month = MONTHS.iter().position(|known| *known == month)? + 1;
    let day = day_number(year, u8::try_from(month).ok()?, day)?;
    Some((day * 86_400 - offset * 60) * SECOND + time_of_day(clock)?)
}

/// "1769900399.123": seconds since 1970.
pub(super) fn unix_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    number(whole)?.checked_mul(SECOND)?.checked_add(micros(fraction)?)
}

fn day_number(year: i64, month: u8, day: &str) -> Option<i64> {
    let month = Month::try_from(month).ok()?;
    let date = Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(number(day)?).ok()?).ok()?;
    Some(i64::from(date.to_julian_day()) - EPOCH_DAY)
}

/// "23:59:59.123456" in microseconds. A leap second is the 60th.
fn time_of_day(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hour, minute, second) = (number(parts.next()?)?, number(parts.next()?)?, parts.next()?);
    let (second, fraction) = second.split_once('.').unwrap_or((second, ""));
    let second = number(second)?;
    let fits = hour < 24 && minute < 60 && second <= 60;
    let fraction = micros(fraction)?;
    fits.then_some((hour * 3_600 + minute * 60 + second) * SECOND + fraction)
}

/// Digits after a decimal point, as microseconds; what is finer is cut off.
fn micros(fraction: &str) -> Option<i64> {
    if fraction.is_empty() {
        return Some(0);
    }
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{fraction:0<6}").get(..6)?.parse().ok()
}

/// "+0130".
fn offset_minutes(text: &str) -> Option<i64> {
    let (sign, digits) = text.split_at_checked(1)?;
    let sign = match sign {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = digits.split_at_checked(2)?;
    (digits.len() == 4).then_some(sign * (number(hours)? * 60 + number(minutes)?))
}

/// Digits only, and few enough that no sum of ours overflows.
fn number(text: &str) -> Option<i64> {
    let fits = (1..=11).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if fits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moments_are_read_in_each_form() {
        let at = 1_700_000_000_000_042;
        assert_eq!(rfc3339("2023-11-14T22:13:20.000042Z"), Some(at));
        assert_eq!(rfc3339("2023-11-14T23:43:20.000042+01:30"), Some(at));
        assert_eq!(rfc3339("2023-11-14T22:13:20Z"), Some(1_700_000_000_000_000));
        assert_eq!(common_log("14/Nov/2023:22:13:20 +0000"), Some(1_700_000_000_000_000));
        assert_eq!(common_log("14/Nov/2023:17:13:20 -0500"), Some(1_700_000_000_000_000));
        assert_eq!(common_log("14/Nov/2023:22:13:20.655"), Some(1_700_000_000_655_000));
        assert_eq!(unix_seconds("1700000000.655"), Some(1_700_000_000_655_000));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["", "now", "2023-13-14T22:13:20Z", "2023-11-31T22:13:20Z", "2023-11-14T24:13:20Z", "T", "é-é-éTé"]
        {
            assert_eq!(rfc3339(text), None, "{text}");
        }
        for text in
            ["", "14/Nov/2023", "14/Brumaire/2023:22:13:20", "14/Nov/2023:22:13 +0000", "14/Nov/2023:22:13:20 é"]
        {
            assert_eq!(common_log(text), None, "{text}");
        }
        for text in ["", "-1", "1e9", "1.5x", "99999999999999999999"] {
            assert_eq!(unix_seconds(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", digits in "[0-9:/.+\\-TZ ]{0,40}") {
            for text in [&text, &digits] {
                let _ = (rfc3339(text), common_log(text), unix_seconds(text));
            }
        }
    }
}
