//! Sending and receiving an application's buffers under the data semantics of its choice.
//!
//! Genie's datagrams were over when the device had sent them; TCP may have to send a byte again until the
//! peer has acknowledged it, so an output holds its buffers until then. Whoever writes earlier to a buffer
//! of his own gets a copy of the blocks that he writes to ([`Region::write`]), and the peer sees what was
//! sent, in retransmissions too. [`Sent`] tells when the wait is over.

use std::future::poll_fn;
use std::io;
use std::ops::Range;

use millstream_buf::{After, Agg, DataSemantics, Exchange, Region};

use crate::conn::Facts;
use crate::stream::{TcpStream, gone, register_writer, to_io};

/// What has been sent up to a call: over when the peer has acknowledged all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    /// `queued_total` of the connection after the call.
    until: u64,
}

/// The number of a semantics in [`Facts::SEMANTICS`]; zero is the default.
fn number_of(semantics: DataSemantics) -> u16 {
    let place = |wanted| DataSemantics::ALL.iter().position(|&other| other == wanted);
    (place(semantics).unwrap_or(0) ^ place(DataSemantics::default()).unwrap_or(0)) as u16
}

fn semantics_of(number: u16) -> DataSemantics {
    let named = |&semantics: &DataSemantics| number_of(semantics) == number;
    DataSemantics::ALL.into_iter().find(named).unwrap_or_default()
}

impl TcpStream {
    /// The semantics of [`Self::send_region`]: emulated copy unless another was set.
    pub fn semantics(&self) -> DataSemantics {
        self.stack.state().conns.named(self.id).map_or_else(DataSemantics::default, |conn| {
            let field = conn.facts & Facts::SEMANTICS;
            semantics_of(field.bits() >> Facts::SEMANTICS.bits().trailing_zeros())
        })
    }

    /// Sets the semantics of [`Self::send_region`].
    pub fn set_semantics(&self, semantics: DataSemantics) {
        if let Some(conn) = self.stack.state().conns.named_mut(self.id) {
            conn.facts.remove(Facts::SEMANTICS);
            let bits = number_of(semantics) << Facts::SEMANTICS.bits().trailing_zeros();
            conn.facts.insert(Facts::from_bits_truncate(bits));
        }
    }

    /// Sends all of a region under the socket's semantics. See [`Self::send_region_as`].
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn send_region(
        &self,
        exchange: &Exchange,
        region: Region,
    ) -> io::Result<(After, Sent)> {
        let len = region.len();
        self.send_region_as(exchange, region, 0..len, self.semantics()).await
    }

    /// Sends bytes `range` of a region under `semantics`, whatever the socket's; waits for room. Gives
    /// back what the application has of the region afterwards, and what to wait for until its memory is
    /// free ([`Self::released`]).
    ///
    /// # Errors
    /// As [`Self::write`]. The region goes with the connection.
    ///
    /// # Panics
    /// If the range is not inside.
    pub async fn send_region_as(
        &self,
        exchange: &Exchange,
        region: Region,
        range: Range<usize>,
        semantics: DataSemantics,
    ) -> io::Result<(After, Sent)> {
        let after = if exchange.copies(range.len(), semantics) {
            let mut start = 0;
            for slice in region.slices() {
                let end = start + slice.len();
                let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
                if let Some(bytes) = slice.get(from - start..to - start) {
                    self.write_all(bytes).await?;
                }
                start = end;
            }
            region.after_copy(semantics, exchange.cache())
        } else {
            let (out, after) = region.refer(range, semantics, exchange.cache());
            self.send_buf(out).await?;
            after
        };
        Ok((after, self.sent()))
    }

    /// What has been queued up to now.
    pub fn sent(&self) -> Sent {
        let state = self.stack.state();
        Sent { until: state.conns.named(self.id).map_or(0, |conn| conn.tcb.queued_total()) }
    }

    /// Whether the peer has acknowledged all of it, or the connection is no more: the stack holds no
    /// buffer for it. A device may for a moment longer; [`After::into_region`] knows.
    pub fn is_released(&self, sent: Sent) -> bool {
        let state = self.stack.state();
        state.conns.named(self.id).is_none_or(|conn| {
            conn.tcb.acked_total() >= sent.until || conn.facts.contains(Facts::CLOSED)
        })
    }

    /// Waits until [`Self::is_released`]. One task at a time waits to write or for this.
    ///
    /// # Errors
    /// How the connection ended before that.
    pub async fn released(&self, sent: Sent) -> io::Result<()> {
        poll_fn(|cx| {
            let mut state = self.stack.state();
            let Some(conn) = state.conns.named_mut(self.id) else { return gone() };
            if conn.tcb.acked_total() >= sent.until {
                return std::task::Poll::Ready(Ok(()));
            }
            match conn.tcb.error() {
                Some(error) => std::task::Poll::Ready(Err(to_io(error))),
                None if conn.facts.contains(Facts::CLOSED) => gone(),
                None => {
                    register_writer(conn, cx);
                    std::task::Poll::Pending
                }
            }
        })
        .await
    }

    /// Takes what has arrived next as a region that the system allocated: input of the semantics *move*
    /// and its kin. Nothing is copied. `None` is the end of the stream.
    ///
    /// # Errors
    /// As [`Self::read_buf`].
    pub async fn receive_region(&self, exchange: &Exchange) -> io::Result<Option<Region>> {
        let slice = self.read_buf().await?;
        Ok(slice.map(|slice| Region::from_agg(exchange.arena(), slice.into())))
    }

    /// Takes what has arrived next into the application's own region, from `at` on: copied below the
    /// measured threshold and with [`DataSemantics::Copy`], else swapped in. The application never sees
    /// less than whole, checked segments, whatever the semantics: *share* promises less.
    ///
    /// Returns how many bytes came; 0 is the end of the stream, or no room. What did not fit is left in
    /// `inbox`, which is to be passed again with the next call.
    ///
    /// # Errors
    /// As [`Self::read_buf`]; `OutOfMemory` if a copy was needed and no buffer was free (the bytes are in
    /// `inbox` then).
    pub async fn receive_into(
        &self,
        exchange: &Exchange,
        region: &mut Region,
        at: usize,
        inbox: &mut Agg,
        semantics: DataSemantics,
    ) -> io::Result<usize> {
        let room = region.len().saturating_sub(at);
        if room == 0 {
            return Ok(0);
        }
        if inbox.is_empty() {
            match self.read_buf().await? {
                Some(slice) => inbox.append(slice),
                None => return Ok(0),
            }
        }
        let count = room.min(inbox.len());
        if !exchange.copies(count, semantics) {
            region.swap_in(at, inbox.split_to(count));
            return Ok(count);
        }
        let mut done = 0;
        for slice in inbox.slice(0..count).slices() {
            region
                .write(at + done, slice)
                .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
            done += slice.len();
        }
        inbox.advance(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_semantics_has_a_number_and_the_default_is_zero() {
        assert_eq!(number_of(DataSemantics::default()), 0);
        for semantics in DataSemantics::ALL {
            assert!(number_of(semantics) < 8);
            assert_eq!(semantics_of(number_of(semantics)), semantics);
        }
    }
}
