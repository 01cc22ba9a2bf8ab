//! Errors in a profile, in one line each: where, what, and what was probably meant.

use toml::Value;

use super::Config;
use crate::error::AppError;

/// Parses a profile. `name` is the file's, for errors.
pub fn parse(text: &str, name: &str) -> Result<Config, AppError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        AppError::usage(format!(
            "{name}:{line}: {}",
            explain(error.message(), section_of(text, line))
        ))
    })
}

/// Applies `section.key=value` to a profile that is right in itself.
pub fn with_overrides(
    config: Config,
    text: &str,
    overrides: &[String],
) -> Result<Config, AppError> {
    if overrides.is_empty() {
        return Ok(config);
    }
    let mut table: toml::Table = toml::from_str(text).map_err(AppError::usage)?;
    for one in overrides {
        let form = || {
            AppError::usage(format!(
                "--set {one}: write it as section.key=value, such as link.iface=dtap1"
            ))
        };
        let (path, value) = one.split_once('=').ok_or_else(form)?;
        let (section, key) = path.trim().split_once('.').ok_or_else(form)?;
        let entry = table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
        let section_table = entry.as_table_mut().ok_or_else(form)?;
        section_table.insert(key.to_owned(), value_of(value.trim()));
        table.clone().try_into::<Config>().map_err(|error| {
            AppError::usage(format!("--set {one}: {}", explain(error.message(), Some(section))))
        })?;
    }
    table.try_into().map_err(AppError::usage)
}

/// A value as TOML would read it, or else a string.
fn value_of(text: &str) -> Value {
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("value = {text}"));
    parsed
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The message in one line. For an unknown key: its section, and the nearest key that exists.
fn explain(message: &str, section: Option<&str>) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some(unknown), true) = (names.first(), message.starts_with("unknown ")) else {
        return message.split_whitespace().collect::<Vec<_>>().join(" ");
    };
    let known = names.get(1..).unwrap_or_default();
    let what = if message.starts_with("unknown variant") { "value" } else { "key" };
    let place = match section {
        Some(section) if what == "key" && !known.contains(&"link") => format!(" in [{section}]"),
        _ => String::new(),
    };
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .max_by(|left, right| left.0.total_cmp(&right.0));
    match nearest {
        Some((likeness, name)) if likeness > 0.7 => {
            format!("unknown {what} `{unknown}`{place}; did you mean `{name}`?")
        }
        _ => format!("unknown {what} `{unknown}`{place}; known are {}", known.join(", ")),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
}

/// The section that a line stands in.
fn section_of(text: &str, line: usize) -> Option<&str> {
    text.lines()
        .take(line)
        .filter_map(|line| line.trim().strip_prefix('[')?.split(']').next())
        .last()
}
