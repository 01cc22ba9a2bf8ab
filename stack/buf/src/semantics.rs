//! The eight data semantics of Genie, and what they promise.
//!
//! Brustoloni (CMU-CS-97-176; OSDI '96) tells apart by three questions what may be done with a buffer
//! while it is being sent: who allocates it, whether what is sent can still be changed by its writer
//! (integrity), and whether the system keeps its promise the plain way or only appears to (emulation).
//!
//! Genie played with page tables; here a [`Region`](crate::Region) is a list of counted handles, so
//! that all semantics but *copy* cost a few nanoseconds a buffer, and the types say which promise holds:
//! after an output the application has what [`After`](crate::After) gives it and nothing else.

use std::fmt;
use std::str::FromStr;

/// What an output does with the application's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DataSemantics {
    /// The bytes are copied; the buffer is the application's at once.
    Copy,
    /// As [`Self::Copy`] for whoever looks, without the copy: handles are shared, and a write copies what
    /// an output still holds (transient copy-on-write). Short data is copied all the same.
    #[default]
    EmulatedCopy,
    /// Sent from where it lies, which is kept in memory (wired) meanwhile. A write before the completion
    /// may or may not be seen by the peer.
    Share,
    /// As [`Self::Share`]; the handles alone keep the memory. Short data is copied.
    EmulatedShare,
    /// The buffer is given away and freed after the output; a new one comes empty.
    Move,
    /// As [`Self::Move`]; the buffer is hidden and comes back as a new one when the output is over, so
    /// nothing is allocated or cleared (region caching and hiding).
    EmulatedMove,
    /// Given away, but it can still be read, with whatever is in it by then; wired meanwhile.
    WeakMove,
    /// As [`Self::WeakMove`], reused when the output is over.
    EmulatedWeakMove,
}

impl DataSemantics {
    /// All eight, basic before emulated.
    pub const ALL: [Self; 8] = [
        Self::Copy,
        Self::EmulatedCopy,
        Self::Share,
        Self::EmulatedShare,
        Self::Move,
        Self::EmulatedMove,
        Self::WeakMove,
        Self::EmulatedWeakMove,
    ];

    /// Its name in profiles and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::EmulatedCopy => "emulated_copy",
            Self::Share => "share",
            Self::EmulatedShare => "emulated_share",
            Self::Move => "move",
            Self::EmulatedMove => "emulated_move",
            Self::WeakMove => "weak_move",
            Self::EmulatedWeakMove => "emulated_weak_move",
        }
    }

    /// Whether what is sent is what the buffer held at the call, whatever is written later.
    pub fn is_strong(self) -> bool {
        matches!(self, Self::Copy | Self::EmulatedCopy | Self::Move | Self::EmulatedMove)
    }

    /// Whether the buffer stays the application's.
    pub fn is_application_allocated(self) -> bool {
        matches!(self, Self::Copy | Self::EmulatedCopy | Self::Share | Self::EmulatedShare)
    }

    /// Whether the promise is kept by other means than the plain ones.
    pub fn is_emulated(self) -> bool {
        matches!(
            self,
            Self::EmulatedCopy | Self::EmulatedShare | Self::EmulatedMove | Self::EmulatedWeakMove
        )
    }

    /// Whether an output of `len` bytes is best copied: always for [`Self::Copy`]; for the emulated
    /// semantics of the application's own buffers below the measured threshold.
    pub fn copies(self, len: usize, copy_below_bytes: usize) -> bool {
        match self {
            Self::Copy => true,
            Self::EmulatedCopy | Self::EmulatedShare => len < copy_below_bytes,
            _ => false,
        }
    }
}

impl fmt::Display for DataSemantics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is none of the eight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{asked}` is no data semantics; choose one of {}", DataSemantics::ALL.map(DataSemantics::name).join(", "))]
pub struct UnknownSemantics {
    /// What was asked for.
    pub asked: String,
}

impl FromStr for DataSemantics {
    type Err = UnknownSemantics;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = |semantics: &Self| semantics.name() == text;
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownSemantics { asked: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_taxonomy_has_each_combination_once() {
        let mut seen: Vec<_> = DataSemantics::ALL
            .iter()
            .map(|s| (s.is_application_allocated(), s.is_strong(), s.is_emulated()))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 8);
        for semantics in DataSemantics::ALL {
            assert_eq!(semantics.name().parse(), Ok(semantics));
        }
        assert!("moved".parse::<DataSemantics>().unwrap_err().to_string().contains("weak_move"));
    }
}
