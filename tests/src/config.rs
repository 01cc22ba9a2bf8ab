//! Variants of the project's profiles.

use std::path::PathBuf;

use crate::lab::Lab;
use crate::server::project_file;

/// Writes a profile of `config/` into the lab's folder with other values, as TOML, for keys that
/// stand in it, set or commented out.
pub fn profile(lab: &Lab, name: &str, values: &[(&str, &str)]) -> PathBuf {
    let from = project_file("config").join(name);
    let text = std::fs::read_to_string(&from);
    let mut text = text.unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    for (key, value) in values {
        let old = text.lines().find(|line| {
            let bare = line.trim_start_matches(['#', ' ']);
            bare.split_once('=').is_some_and(|(name, _)| name.trim_end() == *key)
        });
        let old = old.unwrap_or_else(|| panic!("{name} has no key `{key}`")).to_string();
        text = text.replacen(&format!("\n{old}\n"), &format!("\n{key} = {value}\n"), 1);
    }
    let path = lab.folder().join(format!("variant-{name}"));
    std::fs::write(&path, text).expect("to write it");
    path
}
