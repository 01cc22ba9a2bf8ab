//! The differential oracle, for a while; `make soak` runs it for 10^9 operations.

mod oracle;

use oracle::Oracle;

#[test]
fn random_operations_agree_with_the_naive_model() {
    for seed in 0..8 {
        let mut oracle = Oracle::new(seed);
        for _ in 0..60_000 {
            oracle.step();
        }
    }
}
