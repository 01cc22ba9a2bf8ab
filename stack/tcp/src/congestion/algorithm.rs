//! The controllers' names.

use std::fmt;
use std::str::FromStr;

use crate::congestion::EcnUse;

/// Which congestion controller a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RFC 9438: what most of the Internet uses.
    #[default]
    Cubic,
    /// RFC 5681.
    NewReno,
    /// draft-ietf-ccwg-bbr: for long paths that lose at random. Needs pacing.
    Bbr,
    /// RFC 8257: for a network of one's own whose switches mark early.
    Dctcp,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cubic, Self::NewReno, Self::Bbr, Self::Dctcp];

    /// How it makes use of congestion marks.
    pub(crate) const fn uses_ecn(self) -> EcnUse {
        match self {
            Self::Dctcp => EcnUse::Dctcp,
            Self::Cubic | Self::NewReno | Self::Bbr => EcnUse::Classic,
        }
    }

    /// Its name in a profile.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::NewReno => "newreno",
            Self::Bbr => "bbr",
            Self::Dctcp => "dctcp",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such congestion controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownAlgorithm {
    name: String,
    nearest: Option<Algorithm>,
}

impl fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no congestion control is named `{}`; ", self.name)?;
        if let Some(nearest) = self.nearest {
            return write!(f, "did you mean `{nearest}`?");
        }
        write!(f, "known are {}", Algorithm::ALL.map(Algorithm::name).join(", "))
    }
}

impl std::error::Error for UnknownAlgorithm {}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// Case does not count, and Linux's `reno` is taken for NewReno.
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        let lower = name.to_ascii_lowercase();
        if lower == "reno" {
            return Ok(Self::NewReno);
        }
        if let Some(known) = Self::ALL.into_iter().find(|known| known.name() == lower) {
            return Ok(known);
        }
        let nearest = Self::ALL
            .into_iter()
            .map(|known| (edits(lower.as_bytes(), known.name().as_bytes()), known))
            .min_by_key(|&(edits, _)| edits)
            // More than that is another word.
            .filter(|&(edits, known)| edits * 2 <= known.name().len())
            .map(|(_, known)| known);
        Err(UnknownAlgorithm { name: name.to_owned(), nearest })
    }
}

/// Levenshtein's distance.
fn edits(left: &[u8], right: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let kept = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = kept.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
            assert_eq!(algorithm.to_string().to_uppercase().parse(), Ok(algorithm));
        }
        assert_eq!("reno".parse(), Ok(Algorithm::NewReno));
        assert_eq!(Algorithm::default(), Algorithm::Cubic);
    }

    #[test]
    fn a_misspelt_name_is_told_the_nearest() {
        let told = |name: &str| name.parse::<Algorithm>().unwrap_err().to_string();
        assert_eq!(told("cubik"), "no congestion control is named `cubik`; did you mean `cubic`?");
        assert!(told("new-reno").ends_with("did you mean `newreno`?"));
        assert!(told("DTCP").ends_with("did you mean `dctcp`?"));
        assert_eq!(
            told("westwood"),
            "no congestion control is named `westwood`; known are cubic, newreno, bbr, dctcp"
        );
        assert!(told("").contains("known are"));
    }
}
