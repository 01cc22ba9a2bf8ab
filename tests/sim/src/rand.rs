//! Drawing of quantities from a seed.

use millstream_sim::Rng;

/// One of `values`.
pub fn pick<T: Copy>(rng: &mut Rng, values: &[T]) -> T {
    values[rng.below(values.len() as u64) as usize]
}

/// Between `low` and `high`, each order of magnitude as likely as another.
pub fn spread(rng: &mut Rng, low: f64, high: f64) -> f64 {
    let unit = rng.below(1 << 20) as f64 / (1 << 20) as f64;
    (low.ln() + unit * (high.ln() - low.ln())).exp()
}

/// As [`spread`], a whole number.
pub fn spread_u64(rng: &mut Rng, low: u64, high: u64) -> u64 {
    (spread(rng, low as f64, high as f64 + 1.0) as u64).clamp(low, high)
}
