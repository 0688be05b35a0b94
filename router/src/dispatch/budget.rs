//! How many retries may be under way: a fifth of the running requests, and at
//! least three, so that retries cannot double the load of a pool in trouble.
//! What is over the budget waits its turn; it is not refused.
//! Source: Envoy's retry budget (20 %, minimum 3).

/// The retries of one pool.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RetryBudget {
    under_way: u32,
}

impl RetryBudget {
    /// Starts a retry if the budget allows it beside `active` requests.
    pub(crate) fn try_start(&mut self, active: u32) -> bool {
        let allowed = self.under_way < (active / 5).max(3);
        self.under_way += u32::from(allowed);
        allowed
    }

    /// A retry got its first byte, or failed.
    pub(crate) fn finish(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_at_least_three() {
        let mut budget = RetryBudget::default();
        assert_eq!((0..9).filter(|_| budget.try_start(4)).count(), 3);
        assert_eq!((0..99).filter(|_| budget.try_start(100)).count(), 17);
        budget.finish();
        assert!(budget.try_start(100));
        assert!(!budget.try_start(100));
    }
}
