//! The grid: ten thousand seeds, and those that have failed once.

use millstream_tests_sim::{Grid, Scenario, regressions, run, run_against_smoltcp};

/// Seeds of the grid. The sizes of the scenarios are such that they take minutes.
const SEEDS: u64 = 10_000;

#[test]
fn no_seed_fails() {
    let seeds = regressions().into_iter().chain(0..SEEDS).collect::<Vec<_>>();
    let summary = Grid::default().play(seeds, |_, _| true);
    println!("{summary:?}");
    assert!(summary.seeds >= SEEDS);
    assert_eq!(summary.seeds_ok, summary.seeds, "\n{}", summary.report());
}

/// Seeds that are played with smoltcp at one end.
const SEEDS_AGAINST_SMOLTCP: u64 = 400;

#[test]
fn an_independent_stack_at_one_end_understands() {
    let summary = Grid::new(run_against_smoltcp).play(0..SEEDS_AGAINST_SMOLTCP, |_, _| true);
    assert_eq!(summary.seeds_ok, SEEDS_AGAINST_SMOLTCP, "\n{}", summary.report());
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let scenario = Scenario::from_seed(seed);
        assert_eq!(scenario.to_string(), Scenario::from_seed(seed).to_string());
        assert_eq!(run(&scenario), run(&scenario), "seed {seed}");
    }
}
