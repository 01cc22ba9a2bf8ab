//! The fuzz targets as ordinary tests: every input of the corpus, and a bounded search that begins
//! from it. The search draws from a fixed seed, so it is the same every time.

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use millstream_fuzz::{TARGETS, Target, target};
use millstream_sim::Rng;

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let mut inputs: Vec<_> = std::fs::read_dir(target.corpus())
        .expect("a folder for each target")
        .map(|entry| {
            let entry = entry.expect("an entry of it");
            let bytes = std::fs::read(entry.path()).expect("an input");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    inputs.sort();
    inputs
}

fn examine(target: &Target, what: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{}: {what} breaks it: {hex}", target.name);
    }
}

fn replay(name: &str) {
    let target = target(name).expect("a target");
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "the corpus of {name} is empty");
    for (file, input) in &inputs {
        examine(target, file, input);
    }
}

/// Draws an input: of random bytes, or an input of the corpus with changes.
fn draw(rng: &mut Rng, inputs: &[(String, Vec<u8>)], len_max: usize) -> Vec<u8> {
    let byte = |rng: &mut Rng| rng.below(256) as u8;
    let mut input = if rng.chance(0.3) {
        let len = rng.below(len_max as u64 + 1);
        (0..len).map(|_| byte(rng)).collect()
    } else {
        inputs[rng.below(inputs.len() as u64) as usize].1.clone()
    };
    for _ in 0..rng.below(8) {
        let at = rng.below(input.len() as u64 + 1) as usize;
        match rng.below(4) {
            0 => input.insert(at, byte(rng)),
            1 if at < input.len() => {
                input.remove(at);
            }
            2 => {
                // A piece of another input.
                let other = &inputs[rng.below(inputs.len() as u64) as usize].1;
                let from = rng.below(other.len() as u64 + 1) as usize;
                input.splice(at..at, other[from..].iter().take(64).copied());
            }
            _ => {
                if let Some(slot) = input.get_mut(at) {
                    *slot = byte(rng);
                }
            }
        }
    }
    input.truncate(len_max);
    input
}

fn search(name: &str) {
    let target = target(name).expect("a target");
    let inputs = corpus(target);
    let mut rng = Rng::new(1);
    for number in 0..target.searched {
        let input = draw(&mut rng, &inputs, target.len_max);
        examine(target, &format!("input {number} of the search"), &input);
    }
}

macro_rules! targets {
    ($($name:ident)+) => {
        /// Each target has its tests.
        #[test]
        fn no_target_is_left_out() {
            let named = [$(stringify!($name)),+];
            assert!(TARGETS.iter().map(|target| target.name).eq(named));
        }

        $(mod $name {
            #[test]
            fn survives_its_corpus() {
                super::replay(stringify!($name));
            }

            #[test]
            fn survives_a_search() {
                super::search(stringify!($name));
            }
        })+
    };
}

targets!(options packets ipv6 pair frames http image);
