//! Taking back what a loss that was none brought about: Eifel by timestamps and DSACK (RFC 3522, RFC
//! 3708, RFC 4015).

use millstream_wire::tcp::SeqNumber;

/// What must be known to find out whether an episode had no cause.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Undo {
    /// The oldest number when the episode began; none: there is nothing to take back.
    pub(crate) marker: Option<SeqNumber>,
    /// Repetitions in the episode of which no duplicate was reported; below 0: none was made yet.
    pub(crate) resent: i32,
    /// The timestamp that the first repetition of the episode carried.
    pub(crate) first_resent_at: Option<u32>,
    /// Whether the congestion controller was told of a loss, and so can be told that it was none.
    pub(crate) reduced: bool,
    /// Whether F-RTO is under way (RFC 5682).
    pub(crate) frto: bool,
}

impl Undo {
    /// An episode begins.
    pub(crate) fn begin(&mut self, una: SeqNumber, resent_in_flight: u32) {
        self.marker = Some(una);
        // A duplicate of what was sent again before says nothing about this episode.
        self.resent = if resent_in_flight == 0 { -1 } else { resent_in_flight as i32 };
        self.reduced = true;
    }

    /// A segment is sent again; `stamp` is the clock of timestamps.
    pub(crate) fn note_resent(&mut self, stamp: u32) {
        self.first_resent_at.get_or_insert(stamp);
        self.resent = self.resent.max(0).saturating_add(1);
    }

    /// A duplicate was reported up to `end`, of `segments` segments.
    pub(crate) fn note_duplicate(&mut self, end: SeqNumber, segments: u32) {
        if self.resent > 0 && self.marker.is_some_and(|marker| end.gt(marker)) {
            self.resent = (self.resent - segments.min(1 << 16) as i32).max(0);
        }
    }

    /// The peer echoes a timestamp from before the first repetition: what it acknowledges is what
    /// was sent first (RFC 3522 section 3.2).
    pub(crate) fn echo_is_older(&self, echo: Option<u32>) -> bool {
        match (self.first_resent_at, echo) {
            (Some(at), Some(echo)) => (echo.wrapping_sub(at) as i32) < 0,
            _ => false,
        }
    }

    /// Whether the episode had no cause: all repetitions were needless, or the first was.
    pub(crate) fn is_due(&self, echo: Option<u32>) -> bool {
        self.marker.is_some() && (self.resent == 0 || self.echo_is_older(echo))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_of_all_that_was_sent_again_undo() {
        let mut undo = Undo::default();
        undo.begin(SeqNumber(100), 0);
        assert!(!undo.is_due(None), "nothing was sent again yet");
        undo.note_resent(7);
        undo.note_resent(8);
        undo.note_duplicate(SeqNumber(100), 1);
        assert_eq!(undo.resent, 2, "from before the episode");
        undo.note_duplicate(SeqNumber(200), 1);
        assert!(!undo.is_due(Some(7)) && undo.is_due(Some(6)));
        undo.note_duplicate(SeqNumber(300), 1);
        assert!(undo.is_due(None));
    }
}
