//! The program that `make fuzz` runs: libFuzzer around the target that `MILLSTREAM_FUZZ` names.
//! Without that variable it lists the targets, each with the longest input that is worth a try.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use millstream_fuzz::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn choose() {
    let name = std::env::var("MILLSTREAM_FUZZ").unwrap_or_default();
    let Some(target) = millstream_fuzz::target(&name) else {
        for target in TARGETS {
            println!("{}\t{}\t{}", target.name, target.len_max, target.about);
        }
        std::process::exit(if name.is_empty() { 0 } else { 2 });
    };
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: choose(), |input: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(input);
    }
});
