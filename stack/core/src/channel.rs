//! Bounded queues of raw frames, one a receiver (LRP's NI channels, Druschel & Banga, OSDI '96).
//!
//! The frames of all channels lie in one slab of fixed size, linked by index, so an idle channel
//! costs twelve bytes and nothing is allocated when frames arrive.

use millstream_buf::IoBuf;

const NONE: u32 = u32::MAX;

/// A frame on its way to its receiver, with what classification already found out.
#[derive(Debug)]
pub(crate) struct Packet {
    /// The whole frame, Ethernet header first.
    pub frame: IoBuf,
    /// Where the IP header starts.
    pub ip_offset: u16,
    /// Where the transport header starts.
    pub l4_offset: u16,
    /// Where the IP packet ends (the frame may be padded).
    pub end: u16,
    /// The NIC has verified the transport checksum.
    pub checksum_good: bool,
}

struct Node {
    packet: Option<Packet>,
    next: u32,
}

/// The queue of one receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel {
    head: u32,
    tail: u32,
    len: u16,
    /// Whether the receiver is on the list of those to be served.
    pub scheduled: bool,
}

impl Default for Channel {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, len: 0, scheduled: false }
    }
}

impl Channel {
    /// Packets.
    #[inline]
    pub fn len(&self) -> u16 {
        self.len
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Why a packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The receiver does not keep up.
    ChannelFull,
    /// All channels together hold as much as they may.
    SlabFull,
}

/// Room for the packets of all channels.
pub(crate) struct ChannelSlab {
    nodes: Vec<Node>,
    free: u32,
    used: usize,
}

impl ChannelSlab {
    pub fn with_capacity(packets: usize) -> Self {
        let nodes = (0..packets as u32)
            .map(|i| Node { packet: None, next: if i + 1 < packets as u32 { i + 1 } else { NONE } })
            .collect();
        Self { nodes, free: if packets > 0 { 0 } else { NONE }, used: 0 }
    }

    /// Packets waiting in all channels.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Adds a packet at the end of `channel`, which holds at most `limit`.
    #[inline]
    pub fn push(
        &mut self,
        channel: &mut Channel,
        packet: Packet,
        limit: u16,
    ) -> Result<(), Refused> {
        if channel.len >= limit {
            return Err(Refused::ChannelFull);
        }
        let at = self.free;
        let Some(node) = self.nodes.get_mut(at as usize) else { return Err(Refused::SlabFull) };
        self.free = node.next;
        node.next = NONE;
        node.packet = Some(packet);
        if channel.len == 0 {
            channel.head = at;
        } else if let Some(tail) = self.nodes.get_mut(channel.tail as usize) {
            tail.next = at;
        }
        channel.tail = at;
        channel.len += 1;
        self.used += 1;
        Ok(())
    }

    /// The oldest packet of `channel`, where it lies.
    #[inline]
    pub fn front(&self, channel: &Channel) -> Option<&Packet> {
        self.nodes.get(channel.head as usize).filter(|_| channel.len > 0)?.packet.as_ref()
    }

    /// Takes the oldest packet of `channel`.
    #[inline]
    pub fn pop(&mut self, channel: &mut Channel) -> Option<Packet> {
        if channel.len == 0 {
            return None;
        }
        let at = channel.head;
        let node = self.nodes.get_mut(at as usize)?;
        let packet = node.packet.take();
        channel.head = node.next;
        node.next = self.free;
        self.free = at;
        channel.len -= 1;
        self.used -= 1;
        packet
    }

    /// Takes off what stands behind the first `count` packets of `channel`.
    pub fn split_off(&self, channel: &mut Channel, count: u16) -> Channel {
        if channel.len <= count || count == 0 {
            return Channel::default();
        }
        let mut last = channel.head;
        for _ in 1..count {
            last = self.nodes.get(last as usize).map_or(NONE, |node| node.next);
        }
        let head = self.nodes.get(last as usize).map_or(NONE, |node| node.next);
        let rest = Channel { head, len: channel.len - count, ..*channel };
        channel.tail = last;
        channel.len = count;
        rest
    }

    /// Puts the packets of `rest` behind those of `channel`.
    pub fn append(&mut self, channel: &mut Channel, rest: Channel) {
        if rest.is_empty() {
            return;
        }
        if channel.is_empty() {
            *channel = Channel { scheduled: channel.scheduled, ..rest };
            return;
        }
        if let Some(tail) = self.nodes.get_mut(channel.tail as usize) {
            tail.next = rest.head;
        }
        channel.tail = rest.tail;
        channel.len = channel.len.saturating_add(rest.len);
    }

    /// How many packets of `channel` come to `bytes` together: one at least, if it has any.
    pub fn count_of_bytes(&self, channel: &Channel, bytes: usize) -> u16 {
        let (mut at, mut count, mut sum) = (channel.head, 0, 0usize);
        while count < channel.len
            && let Some(node) = self.nodes.get(at as usize)
        {
            sum += node.packet.as_ref().map_or(0, |packet| packet.frame.len());
            if sum > bytes && count > 0 {
                break;
            }
            count += 1;
            at = node.next;
        }
        count
    }

    /// Drops all that `channel` holds; returns how many packets that were.
    pub fn clear(&mut self, channel: &mut Channel) -> u64 {
        let mut count = 0;
        while self.pop(channel).is_some() {
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn packet(n: u16) -> Packet {
        Packet {
            frame: IoBuf::from(vec![1]),
            ip_offset: n,
            l4_offset: 0,
            end: 0,
            checksum_good: true,
        }
    }

    proptest! {
        /// Three channels over one slab behave as three bounded queues with a common bound.
        #[test]
        fn agrees_with_queues(ops in prop::collection::vec((0usize..3, any::<bool>()), 0..200)) {
            let mut slab = ChannelSlab::with_capacity(7);
            let mut channels = [Channel::default(); 3];
            let mut models: [VecDeque<u16>; 3] = Default::default();
            for (n, (which, push)) in ops.into_iter().enumerate() {
                // To cut a channel in two and join it again changes nothing.
                let rest = slab.split_off(&mut channels[which], (n % 4) as u16);
                slab.append(&mut channels[which], rest);
                prop_assert_eq!(usize::from(slab.count_of_bytes(&channels[which], n % 4)),
                    models[which].len().min((n % 4).max(1)));
                if push {
                    let all: usize = models.iter().map(VecDeque::len).sum();
                    let expected = if models[which].len() == 4 { Err(Refused::ChannelFull) }
                        else if all == 7 { Err(Refused::SlabFull) } else { Ok(()) };
                    prop_assert_eq!(slab.push(&mut channels[which], packet(n as u16), 4), expected);
                    if expected.is_ok() { models[which].push_back(n as u16); }
                } else {
                    let got = slab.pop(&mut channels[which]).map(|p| p.ip_offset);
                    prop_assert_eq!(got, models[which].pop_front());
                }
            }
            prop_assert_eq!(slab.used(), models.iter().map(VecDeque::len).sum::<usize>());
        }
    }
}
