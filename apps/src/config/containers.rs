//! `[[container]]`: who is charged and scheduled, and whose clients are whose.

use millstream::core::{ContainerSpec, PRIORITY_DEFAULT, Prefix, RxPolicy};
use serde::{Deserialize, Serialize};

use crate::error::AppError;

/// When protocol work is done for what was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RxMode {
    /// At once, whatever comes.
    Eager,
    /// At once, but for what finds its receiver's channel full.
    EarlyDemux,
    /// When its owner's turn comes.
    #[default]
    Lrp,
    /// As that; each socket says how it wants it.
    Srp,
}

impl From<RxMode> for RxPolicy {
    fn from(mode: RxMode) -> Self {
        match mode {
            RxMode::Eager => Self::Eager,
            RxMode::EarlyDemux => Self::EarlyDemux,
            RxMode::Lrp => Self::Lrp,
            RxMode::Srp => Self::Srp,
        }
    }
}

/// `[[container]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ContainerSection {
    pub name: String,
    pub parent: Option<String>,
    #[serde(default = "usual_priority")]
    pub priority: u8,
    pub share_percent: Option<f64>,
    pub cpu_limit_percent: Option<f64>,
    pub memory_limit_bytes: Option<u64>,
    /// Prefixes of the clients whose connections are its own.
    #[serde(default)]
    pub clients: Vec<String>,
}

fn usual_priority() -> u8 {
    PRIORITY_DEFAULT
}

impl ContainerSection {
    /// What the stack is to make.
    pub fn spec(&self) -> ContainerSpec {
        ContainerSpec {
            name: self.name.clone(),
            parent: self.parent.clone(),
            priority: self.priority,
            share_percent: self.share_percent,
            cpu_limit_percent: self.cpu_limit_percent,
            memory_limit_bytes: self.memory_limit_bytes,
        }
    }

    /// Its clients.
    ///
    /// # Errors
    /// [`AppError::Usage`] for what is no prefix.
    pub fn clients(&self) -> Result<Vec<Prefix>, AppError> {
        let prefixes = self.clients.iter().map(|text| text.parse().map_err(AppError::usage));
        prefixes.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn containers_are_read_with_their_defaults() {
        let text = "[[container]]\nname = \"guests\"\npriority = 10\nshare_percent = 20\n\
                    clients = [\"198.18.0.0/16\"]\n[[container]]\nname = \"rest\"\n\
                    [shard]\nrx = \"early-demux\"";
        let config = parse(text).unwrap();
        let [guests, rest] = &config.container[..] else { panic!("{config:?}") };
        assert_eq!(guests.spec().share_percent, Some(20.0));
        assert_eq!(guests.clients().unwrap()[0].to_string(), "198.18.0.0/16");
        assert_eq!(rest.spec(), ContainerSpec::new("rest"));
        assert_eq!(config.shard_config().rx, RxPolicy::EarlyDemux);
        assert!(parse("[[container]]\nname = \"x\"\nshare = 1").is_err());
        let bad = parse("[[container]]\nname = \"x\"\nclients = [\"198.18.0.1/16\"]").unwrap();
        assert!(bad.container[0].clients().unwrap_err().to_string().contains("198.18.0.0/16"));
    }
}
