//! How uneven a load is.
//!
//! All measures take the loads of a pool's eligible servers per unit of weight. An even pool has max over mean 1, Jain
//! 1 and CV 0. The usable capacity of a pool is one over its max over mean: at 1.5, a third of it is out of reach.

/// The measures of one load vector.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measures {
    /// The most loaded server over the mean.
    pub max_over_mean: f64,
    /// Jain's fairness index (Jain, Chiu and Hawe 1984): (sum x)^2 / (n sum x^2).
    pub jain: f64,
    /// Coefficient of variation: standard deviation over mean.
    pub cv: f64,
}

impl Measures {
    /// Each measure with its name in metrics and API.
    pub const fn named(&self) -> [(&'static str, f64); 3] {
        [("max_over_mean", self.max_over_mean), ("jain", self.jain), ("cv", self.cv)]
    }
}

/// Measures a load vector; nothing where there is no load, or nobody to compare.
pub fn measure(loads: &[f64]) -> Option<Measures> {
    let n = loads.len() as f64;
    let sum: f64 = loads.iter().sum();
    if loads.is_empty() || sum <= 0.0 {
        return None;
    }
    let mean = sum / n;
    let squares: f64 = loads.iter().map(|load| load * load).sum();
    let variance = (squares / n - mean * mean).max(0.0);
    let max = loads.iter().copied().fold(0.0, f64::max);
    Some(Measures { max_over_mean: max / mean, jain: sum * sum / (n * squares), cv: variance.sqrt() / mean })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn even_uneven_and_nothing() {
        assert_eq!(measure(&[2.0, 2.0, 2.0]), Some(Measures { max_over_mean: 1.0, jain: 1.0, cv: 0.0 }));
        let all_on_one = measure(&[8.0, 0.0, 0.0, 0.0]).unwrap();
        assert_eq!((all_on_one.max_over_mean, all_on_one.jain), (4.0, 0.25));
        assert_eq!(measure(&[0.0, 0.0]), None);
        assert_eq!(measure(&[]), None);
    }

    proptest! {
        #[test]
        fn jain_is_one_over_one_plus_cv_squared(loads in proptest::collection::vec(0.0f64..100.0, 1..20)) {
            if let Some(measures) = measure(&loads) {
                prop_assert!((measures.jain - 1.0 / (1.0 + measures.cv.powi(2))).abs() < 1e-6);
                prop_assert!(measures.max_over_mean >= 1.0 - 1e-9 && measures.max_over_mean <= loads.len() as f64 + 1e-9);
            }
        }
    }
}
