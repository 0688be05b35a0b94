//! A running mean. The first values count alike, so that it is right from the start;
//! later ones push out what was before.

/// The share of the newest of many values.
const GAIN: f64 = 0.05;

/// A running mean.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean {
    value: f64,
    count: f64,
}

impl Mean {
    /// Takes a value in.
    pub(crate) fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.value += (value - self.value) * GAIN.max(1.0 / self.count);
    }

    /// The mean so far; zero of nothing.
    pub(crate) fn get(self) -> f64 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_right_from_the_start_and_forgets() {
        let mut mean = Mean::default();
        mean.add(30.0);
        assert!((mean.get() - 30.0).abs() < 0.01);
        mean.add(10.0);
        assert!((mean.get() - 20.0).abs() < 0.01);
        (0..200).for_each(|_| mean.add(1.0));
        assert!((mean.get() - 1.0).abs() < 0.01);
    }
}
