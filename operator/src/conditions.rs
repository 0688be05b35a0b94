//! Conditions by the API conventions: the transition time moves only when the
//! status does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::now::Now;

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// `True`
    True,
    /// `False`
    False,
    /// `Unknown`
    Unknown,
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

impl Truth {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Conditions in the making.
#[derive(Debug)]
pub struct Conditions<'a> {
    before: &'a [Condition],
    generation: Option<i64>,
    now: &'a Now,
    after: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts from those that the object has.
    #[must_use]
    pub fn new(before: &'a [Condition], generation: Option<i64>, now: &'a Now) -> Self {
        Self {
            before,
            generation,
            now,
            after: Vec::new(),
        }
    }

    /// Sets one.
    pub fn set(&mut self, kind: &str, truth: Truth, reason: &str, message: &str) {
        let before = self.before.iter().find(|condition| condition.type_ == kind);
        let time = match before {
            Some(before) if before.status == truth.as_str() => before.last_transition_time.clone(),
            _ => self.now.time(),
        };
        self.after.push(Condition {
            type_: kind.to_owned(),
            status: truth.as_str().to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: self.generation,
            last_transition_time: time,
        });
    }

    /// All that were set.
    #[must_use]
    pub fn finish(self) -> Vec<Condition> {
        self.after
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let start = Now::read();
        let mut first = Conditions::new(&[], Some(1), &start);
        first.set("Available", Truth::Unknown, "Unknown", "");
        let first = first.finish();
        let later = Now {
            wall: start.wall + Duration::from_secs(60),
            ..start
        };
        let mut second = Conditions::new(&first, Some(2), &later);
        second.set("Available", Truth::Unknown, "Waiting", "for a node");
        let second = second.finish();
        assert_eq!(
            second[0].last_transition_time,
            first[0].last_transition_time
        );
        let mut third = Conditions::new(&second, Some(2), &later);
        third.set("Available", Truth::True, "Ready", "");
        assert_ne!(
            third.finish()[0].last_transition_time,
            first[0].last_transition_time
        );
    }
}
