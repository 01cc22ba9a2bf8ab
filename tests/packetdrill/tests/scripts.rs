//! Plays all scripts: those beside this test, and the Linux kernel's own where they were fetched
//! (`tools/kernel-scripts`). Each counts as a test. Arguments choose scripts by parts of their names.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use millstream_packetdrill::kernel::{self, Expectations, play};

/// Set where the kernel's scripts must be there.
const REQUIRED: &str = "MILLSTREAM_REQUIRE_KERNEL_SCRIPTS";

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

fn main() -> ExitCode {
    let filters: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(part));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tally = Tally::default();
    for script in scripts_in(&here.join("scripts")) {
        let name = name_of(&script);
        if !chosen(&name) {
            continue;
        }
        match play(&script) {
            Ok(()) => tally.passed += 1,
            Err(why) => {
                tally.failed += 1;
                println!("FAILED  {name}: {why}");
            }
        }
    }
    if let Some(folder) = kernel::folder() {
        kernel_scripts(&folder, &chosen, &mut tally);
    } else if std::env::var_os(REQUIRED).is_some() {
        tally.failed += 1;
        println!("FAILED  the kernel's scripts are required; tools/kernel-scripts gets them");
    } else {
        println!("packetdrill: the kernel's scripts are not there and were not played");
    }
    let Tally { passed, failed } = tally;
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays the kernel's portable scripts, and compares with what is expected of them.
fn kernel_scripts(folder: &Path, chosen: &dyn Fn(&str) -> bool, tally: &mut Tally) {
    let expected = Expectations::read().expect("EXPECT.toml");
    for name in expected.fails.keys().filter(|name| !expected.portable.contains(name)) {
        tally.failed += 1;
        println!("FAILED  EXPECT.toml: {name} is not one of the portable scripts");
    }
    let mut passed = 0;
    let mut played = 0;
    for name in expected.portable.iter().filter(|name| chosen(name)) {
        played += 1;
        let outcome = play(&folder.join(format!("{name}.pkt")));
        passed += usize::from(outcome.is_ok());
        match (outcome, expected.fails.get(name)) {
            (Ok(()), None) | (Err(_), Some(_)) => tally.passed += 1,
            (Ok(()), Some(_)) => {
                tally.failed += 1;
                println!(
                    "FAILED  {name}: stale expectation: it passes, so EXPECT.toml must not list it"
                );
            }
            (Err(why), None) => {
                tally.failed += 1;
                println!("FAILED  {name}: {why}");
            }
        }
    }
    println!("packetdrill: {passed} of {played} kernel scripts pass");
}

fn scripts_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder of scripts");
    let mut scripts: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "pkt"))
        .collect();
    scripts.sort();
    scripts
}

fn name_of(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
