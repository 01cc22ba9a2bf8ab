//! The Linux kernel's own scripts, and what is expected of them.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::player::play_file;

/// `EXPECT.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// Those of the kernel's scripts that need nothing but what this world has.
    pub portable: Vec<String>,
    /// Those of them that do not pass, and why.
    pub fails: BTreeMap<String, String>,
}

impl Expectations {
    /// Reads `EXPECT.toml`.
    ///
    /// # Errors
    /// It is not there, or not right.
    pub fn read() -> Result<Self, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("EXPECT.toml");
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        toml::from_str(&text).map_err(|error| error.to_string())
    }
}

/// Where `tools/kernel-scripts` puts the kernel's scripts; `None` if they are not there.
pub fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kernel-scripts");
    folder.join(".complete").exists().then_some(folder)
}

/// Plays a script; a panic is its failure alone.
///
/// # Errors
/// Why it failed.
pub fn play(path: &Path) -> Result<(), String> {
    match catch_unwind(|| play_file(path)) {
        Ok(outcome) => outcome.map_err(|failure| failure.to_string()),
        Err(_) => Err("panicked".into()),
    }
}

/// How many of the portable scripts in a folder pass, and how many there are.
///
/// # Errors
/// `EXPECT.toml` cannot be read.
pub fn count(folder: &Path) -> Result<(usize, usize), String> {
    let portable = Expectations::read()?.portable;
    let passes = |name: &&String| play(&folder.join(format!("{name}.pkt"))).is_ok();
    Ok((portable.iter().filter(passes).count(), portable.len()))
}
