//! A duration as users write it: `90s`, `5m`, `1h30m`. The grammar is Gateway
//! API's (GEP-2257), which CEL's `duration()` understands too.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration as Std;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The grammar as a regular expression.
pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A length of time that reads and writes like `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(Std);

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration; write it like 90s, 5m or 1h30m")]
pub struct InvalidDuration(String);

impl Duration {
    /// A whole number of seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Std::from_secs(seconds))
    }

    /// As the standard library counts it.
    #[must_use]
    pub const fn get(self) -> Std {
        self.0
    }

    /// Whole seconds, rounded up: what Kubernetes' integer fields want.
    #[must_use]
    pub fn seconds_ceil(self) -> u64 {
        self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0)
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDuration(text.to_owned());
        let mut rest = text;
        let mut total = Std::ZERO;
        let mut parts = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=5).contains(&digits) || parts == 4 {
                return Err(invalid());
            }
            let (number, tail) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| invalid())?;
            let (unit, tail) = tail.split_at(
                tail.bytes()
                    .position(|byte| byte.is_ascii_digit())
                    .unwrap_or(tail.len()),
            );
            total += match unit {
                "h" => Std::from_secs(number * 3600),
                "m" => Std::from_secs(number * 60),
                "s" => Std::from_secs(number),
                "ms" => Std::from_millis(number),
                _ => return Err(invalid()),
            };
            rest = tail;
            parts += 1;
        }
        if parts == 0 {
            return Err(invalid());
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let parts = [
            (u128::from(seconds / 3600), "h"),
            (u128::from(seconds % 3600 / 60), "m"),
            (u128::from(seconds % 60), "s"),
            (u128::from(self.0.subsec_millis()), "ms"),
        ];
        if parts.iter().all(|(count, _)| *count == 0) {
            return f.write_str("0s");
        }
        for (count, unit) in parts.iter().filter(|(count, _)| *count > 0) {
            write!(f, "{count}{unit}")?;
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": 24 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them_and_print_shortest() {
        for (text, seconds, printed) in [
            ("90s", 90, "1m30s"),
            ("5m", 300, "5m"),
            ("1h30m", 5400, "1h30m"),
            ("0s", 0, "0s"),
            ("3600s", 3600, "1h"),
        ] {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!(parsed, Duration::from_secs(seconds), "{text}");
            assert_eq!(parsed.to_string(), printed);
        }
        assert_eq!("1500ms".parse::<Duration>().unwrap().seconds_ceil(), 2);
    }

    #[test]
    fn what_the_pattern_refuses_is_refused() {
        for text in [
            "",
            "5",
            "m",
            "-5s",
            "1.5h",
            "5d",
            "123456s",
            "1s1s1s1s1s",
            "5 m",
        ] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
