//! Explicit congestion notification (RFC 3168).

use crate::tcb::{Facts, Tcb};

impl Tcb {
    /// The window was reduced: the peer is told, so that it stops echoing marks (RFC 3168 section
    /// 6.1.2).
    pub(crate) fn queue_cwr(&mut self) {
        if self.facts.contains(Facts::ECN) {
            self.facts.insert(Facts::CWR_DUE);
        }
    }
}
