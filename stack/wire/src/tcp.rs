//! TCP headers and options (RFC 9293 section 3.1, RFC 7323, RFC 2018).
//!
//! A [`Header`] is read in place; its options stay bytes until somebody asks for one of them. What
//! is sent carries its options encoded ([`Options`]), so that emitting a header is a handful of
//! stores. The checksum is the caller's: it alone knows what the NIC has computed already.

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

/// Most bytes of options that a header can carry.
pub const MAX_OPTIONS_LEN: usize = 40;

/// Largest shift of a window (RFC 7323 section 2.3).
pub const MAX_WINDOW_SCALE: u8 = 14;

const KIND_END: u8 = 0;
const KIND_NOP: u8 = 1;
const KIND_MSS: u8 = 2;
const KIND_WINDOW_SCALE: u8 = 3;
const KIND_SACK_PERMITTED: u8 = 4;
const KIND_SACK: u8 = 5;
const KIND_TIMESTAMP: u8 = 8;

/// The layout that nearly every segment of an established connection has: nop, nop, timestamps.
const TIMESTAMP_PREFIX: [u8; 4] = [KIND_NOP, KIND_NOP, KIND_TIMESTAMP, 10];

/// Why bytes are not a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer than 20 bytes.
    #[error("the TCP header is cut short")]
    Truncated,
    /// The data offset is below 5 words, or beyond what was received.
    #[error("the TCP data offset does not fit the segment")]
    BadDataOffset,
}

/// A sequence number: a position in a stream modulo 2^32 (RFC 9293 section 3.4).
///
/// Comparisons are right as long as the two are less than 2^31 apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// This number and `count` bytes.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)] // the operator exists too; this one reads well in chains
    pub const fn add(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// This number less `count` bytes.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn sub(self, count: u32) -> Self {
        Self(self.0.wrapping_sub(count))
    }

    /// Bytes from `earlier` to this number, negative if `earlier` is later.
    #[inline]
    pub const fn distance(self, earlier: Self) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }

    /// Bytes from `earlier`, which is known not to be later, to this number.
    #[inline]
    pub const fn bytes_since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether this number is before `other`.
    #[inline]
    pub const fn lt(self, other: Self) -> bool {
        self.distance(other) < 0
    }

    /// Whether this number is `other` or before it.
    #[inline]
    pub const fn le(self, other: Self) -> bool {
        self.distance(other) <= 0
    }

    /// Whether this number is after `other`.
    #[inline]
    pub const fn gt(self, other: Self) -> bool {
        self.distance(other) > 0
    }

    /// Whether this number is `other` or after it.
    #[inline]
    pub const fn ge(self, other: Self) -> bool {
        self.distance(other) >= 0
    }

    /// The later of two numbers.
    #[inline]
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        if self.lt(other) { other } else { self }
    }

    /// The earlier of two numbers.
    #[inline]
    #[must_use]
    pub const fn min(self, other: Self) -> Self {
        if self.lt(other) { self } else { other }
    }
}

impl core::ops::Add<u32> for SeqNumber {
    type Output = Self;
    #[inline]
    fn add(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }
}

impl core::ops::AddAssign<u32> for SeqNumber {
    #[inline]
    fn add_assign(&mut self, count: u32) {
        self.0 = self.0.wrapping_add(count);
    }
}

impl core::ops::Sub<u32> for SeqNumber {
    type Output = Self;
    #[inline]
    fn sub(self, count: u32) -> Self {
        Self(self.0.wrapping_sub(count))
    }
}

impl core::fmt::Display for SeqNumber {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

bitflags::bitflags! {
    /// The control bits (RFC 9293 section 3.1, RFC 3168).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u8 {
        /// No more data from the sender.
        const FIN = 0x01;
        /// Synchronise sequence numbers.
        const SYN = 0x02;
        /// Reset the connection.
        const RST = 0x04;
        /// Push.
        const PSH = 0x08;
        /// The acknowledgement number counts.
        const ACK = 0x10;
        /// The urgent pointer counts.
        const URG = 0x20;
        /// ECN echo.
        const ECE = 0x40;
        /// Congestion window reduced.
        const CWR = 0x80;
    }
}

/// The timestamps option (RFC 7323 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// The sender's clock, TSval.
    pub value: u32,
    /// The receiver's clock sent back to it, TSecr.
    pub echo: u32,
}

/// What a SYN can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SynOptions {
    /// Largest segment that its sender takes, in bytes of payload and options.
    pub mss: Option<u16>,
    /// Shift of the windows that its sender will announce, at most [`MAX_WINDOW_SCALE`].
    pub window_scale: Option<u8>,
    /// Whether its sender understands selective acknowledgements.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamp: Option<Timestamp>,
}

/// Up to four ranges of sequence numbers, each from its first byte to behind its last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SackBlocks {
    blocks: [(SeqNumber, SeqNumber); 4],
    len: u8,
}

impl SackBlocks {
    /// No blocks.
    pub const EMPTY: Self = Self { blocks: [(SeqNumber(0), SeqNumber(0)); 4], len: 0 };

    /// Adds a block; tells whether there was room.
    #[inline]
    pub fn push(&mut self, start: SeqNumber, end: SeqNumber) -> bool {
        let Some(slot) = self.blocks.get_mut(usize::from(self.len)) else { return false };
        *slot = (start, end);
        self.len += 1;
        true
    }

    /// The blocks in the order they were sent in.
    #[inline]
    pub fn as_slice(&self) -> &[(SeqNumber, SeqNumber)] {
        self.blocks.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// How many there are.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the blocks behind the first `len`.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.min(4) as u8);
    }
}

/// A parsed header. Its options lie in the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Sender's port.
    pub src_port: u16,
    /// Receiver's port.
    pub dst_port: u16,
    /// Number of the first byte, or of the SYN.
    pub seq: SeqNumber,
    /// Number of the next byte that the sender wants; counts with [`Flags::ACK`].
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// The window as it stands in the header: not yet scaled.
    pub window: u16,
    /// The urgent pointer; counts with [`Flags::URG`].
    pub urgent: u16,
    /// The options, encoded.
    pub options: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the header of a segment, and says how long it is in bytes; the payload follows it.
    ///
    /// Only lengths are checked: the checksum is the caller's.
    ///
    /// # Errors
    /// [`ParseError`]
    #[inline]
    pub fn parse(segment: &'a [u8]) -> Result<(Header<'a>, usize), ParseError> {
        let fixed: &[u8; HEADER_LEN] = segment.first_chunk().ok_or(ParseError::Truncated)?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(ParseError::BadDataOffset);
        }
        let options = segment.get(HEADER_LEN..header_len).ok_or(ParseError::BadDataOffset)?;
        let header = Header {
            src_port: u16::from_be_bytes([fixed[0], fixed[1]]),
            dst_port: u16::from_be_bytes([fixed[2], fixed[3]]),
            seq: SeqNumber(be32(fixed, 4)),
            ack: SeqNumber(be32(fixed, 8)),
            flags: Flags::from_bits_retain(fixed[13]),
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            urgent: u16::from_be_bytes([fixed[18], fixed[19]]),
            options,
        };
        Ok((header, header_len))
    }

    /// The timestamps if they are the only option and laid out as nearly every stack does it.
    #[inline]
    pub fn lone_timestamp(&self) -> Option<Timestamp> {
        let options: &[u8; 12] = self.options.try_into().ok()?;
        if options[..4] != TIMESTAMP_PREFIX {
            return None;
        }
        Some(Timestamp { value: be32(options, 4), echo: be32(options, 8) })
    }

    /// The timestamps, wherever they stand.
    #[inline]
    pub fn timestamp(&self) -> Option<Timestamp> {
        if let Some(options) = self.options.first_chunk::<12>()
            && options[..4] == TIMESTAMP_PREFIX
        {
            return Some(Timestamp { value: be32(options, 4), echo: be32(options, 8) });
        }
        if self.options.is_empty() {
            return None;
        }
        self.find_timestamp()
    }

    #[cold]
    fn find_timestamp(&self) -> Option<Timestamp> {
        OptionIter { rest: self.options }.find_map(timestamp_of)
    }

    /// The options that count on a SYN. Where one is repeated, the last one counts.
    #[cold]
    pub fn syn_options(&self) -> SynOptions {
        let mut found = SynOptions::default();
        for option in (OptionIter { rest: self.options }) {
            match option {
                (KIND_MSS, &[high, low]) => found.mss = Some(u16::from_be_bytes([high, low])),
                // RFC 7323 section 2.3: a shift above 14 is used as 14.
                (KIND_WINDOW_SCALE, &[shift]) => {
                    found.window_scale = Some(shift.min(MAX_WINDOW_SCALE));
                }
                (KIND_SACK_PERMITTED, &[]) => found.sack_permitted = true,
                _ => {
                    if let Some(timestamp) = timestamp_of(option) {
                        found.timestamp = Some(timestamp);
                    }
                }
            }
        }
        found
    }

    /// The selective acknowledgements, in the order they stand in; none if the option is malformed.
    pub fn sack_blocks(&self) -> SackBlocks {
        let mut found = SackBlocks::EMPTY;
        for (kind, data) in (OptionIter { rest: self.options }) {
            if kind != KIND_SACK || data.len() % 8 != 0 {
                continue;
            }
            for block in data.chunks_exact(8) {
                found.push(SeqNumber(be32(block, 0)), SeqNumber(be32(block, 4)));
            }
        }
        found
    }
}

#[inline]
fn be32(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

fn timestamp_of((kind, data): (u8, &[u8])) -> Option<Timestamp> {
    (kind == KIND_TIMESTAMP && data.len() == 8)
        .then(|| Timestamp { value: be32(data, 0), echo: be32(data, 4) })
}

/// Kind and data of each option. Ends at the first length that cannot be right: what follows it has
/// no known start (RFC 9293 section 3.1, MUST-7).
struct OptionIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for OptionIter<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match *self.rest {
                [] | [KIND_END, ..] | [_] if self.rest != [KIND_NOP] => return None,
                [KIND_NOP, ref rest @ ..] => self.rest = rest,
                [kind, len, ..] => {
                    let data = self.rest.get(2..usize::from(len))?;
                    self.rest = self.rest.get(usize::from(len)..)?;
                    return Some((kind, data));
                }
                _ => return None,
            }
        }
    }
}

/// The options of a segment to be sent, encoded: at most [`MAX_OPTIONS_LEN`] bytes, always whole
/// words.
#[derive(Clone, Copy)]
pub struct Options {
    bytes: [u8; MAX_OPTIONS_LEN],
    len: u8,
}

impl Options {
    /// No options.
    pub const EMPTY: Self = Self { bytes: [0; MAX_OPTIONS_LEN], len: 0 };

    /// The options of a SYN in the order in which Linux sends them: `mss`, `sackOK`, `TS`, `nop`,
    /// `wscale`, with nops in place of what is absent where that keeps words whole.
    #[cold]
    pub fn syn(
        mss: u16,
        window_scale: Option<u8>,
        sack_permitted: bool,
        timestamp: Option<Timestamp>,
    ) -> Self {
        let mut options = Self::EMPTY;
        let [high, low] = mss.to_be_bytes();
        options.put(&[KIND_MSS, 4, high, low]);
        if let Some(timestamp) = timestamp {
            let lead = if sack_permitted { [KIND_SACK_PERMITTED, 2] } else { [KIND_NOP, KIND_NOP] };
            options.put(&lead);
            options.put(&[KIND_TIMESTAMP, 10]);
            options.put(&timestamp.value.to_be_bytes());
            options.put(&timestamp.echo.to_be_bytes());
        } else if sack_permitted {
            options.put(&[KIND_NOP, KIND_NOP, KIND_SACK_PERMITTED, 2]);
        }
        if let Some(shift) = window_scale {
            options.put(&[KIND_NOP, KIND_WINDOW_SCALE, 3, shift.min(MAX_WINDOW_SCALE)]);
        }
        options
    }

    /// The options of any other segment: timestamps, then as many blocks as there is room for.
    #[inline]
    pub fn established(timestamp: Option<Timestamp>, sack: &SackBlocks) -> Self {
        let mut options = Self::EMPTY;
        options.set_established(timestamp, sack);
        options
    }

    /// As [`Self::established`], in place.
    #[inline]
    pub fn set_established(&mut self, timestamp: Option<Timestamp>, sack: &SackBlocks) {
        self.len = 0;
        if let Some(timestamp) = timestamp {
            self.set_timestamp(timestamp);
        }
        if !sack.is_empty() {
            self.put_sack(sack);
        }
    }

    /// Makes timestamps the only option.
    #[inline]
    pub fn set_timestamp(&mut self, timestamp: Timestamp) {
        self.bytes[..4].copy_from_slice(&TIMESTAMP_PREFIX);
        self.bytes[4..8].copy_from_slice(&timestamp.value.to_be_bytes());
        self.bytes[8..12].copy_from_slice(&timestamp.echo.to_be_bytes());
        self.len = 12;
    }

    /// The encoded options and, behind them, bytes that mean nothing: copying all of these costs
    /// less than copying as many as there are.
    #[inline]
    pub fn as_padded(&self) -> &[u8; MAX_OPTIONS_LEN] {
        &self.bytes
    }

    /// Removes all options.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    #[cold]
    fn put_sack(&mut self, sack: &SackBlocks) {
        let room = (MAX_OPTIONS_LEN - usize::from(self.len)).saturating_sub(4) / 8;
        let blocks = sack.as_slice();
        let blocks = &blocks[..blocks.len().min(room)];
        if blocks.is_empty() {
            return;
        }
        self.put(&[KIND_NOP, KIND_NOP, KIND_SACK, (2 + blocks.len() * 8) as u8]);
        for (start, end) in blocks {
            self.put(&start.0.to_be_bytes());
            self.put(&end.0.to_be_bytes());
        }
    }

    /// Adds encoded bytes; ignored if there is no room, which the builders above never let happen.
    fn put(&mut self, bytes: &[u8]) {
        let at = usize::from(self.len);
        if let Some(room) = self.bytes.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len() as u8;
        }
    }

    /// The encoded bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// How many bytes they are.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl PartialEq for Options {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Options {}

impl core::fmt::Debug for Options {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Options").field(&self.as_slice()).finish()
    }
}

/// Writes a header with its options at the start of `buf`; returns its length in bytes. The
/// checksum is left zero. Options that are no whole words are padded with zeros (end of list).
///
/// # Panics
/// If `options` is longer than [`MAX_OPTIONS_LEN`] or `buf` is shorter than the header.
#[allow(clippy::too_many_arguments)] // the fields of a header, in its order
#[inline]
pub fn emit(
    buf: &mut [u8],
    src_port: u16,
    dst_port: u16,
    seq: SeqNumber,
    ack: SeqNumber,
    flags: Flags,
    window: u16,
    urgent: u16,
    options: &[u8],
) -> usize {
    assert!(options.len() <= MAX_OPTIONS_LEN);
    let header_len = HEADER_LEN + options.len().next_multiple_of(4);
    let buf = &mut buf[..header_len];
    buf[0..2].copy_from_slice(&src_port.to_be_bytes());
    buf[2..4].copy_from_slice(&dst_port.to_be_bytes());
    buf[4..8].copy_from_slice(&seq.0.to_be_bytes());
    buf[8..12].copy_from_slice(&ack.0.to_be_bytes());
    buf[12..14].copy_from_slice(&[((header_len / 4) << 4) as u8, flags.bits()]);
    buf[14..16].copy_from_slice(&window.to_be_bytes());
    buf[16..18].copy_from_slice(&[0; 2]);
    buf[18..20].copy_from_slice(&urgent.to_be_bytes());
    // The length of nearly every segment's options, as stores and not as a call.
    if let Ok(options) = <&[u8; 12]>::try_from(options) {
        buf[20..32].copy_from_slice(options);
    } else {
        let (filled, padding) = buf[HEADER_LEN..].split_at_mut(options.len());
        filled.copy_from_slice(options);
        padding.fill(0);
    }
    header_len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_options(options: &[u8]) -> Header<'_> {
        Header {
            src_port: 0,
            dst_port: 0,
            seq: SeqNumber(0),
            ack: SeqNumber(0),
            flags: Flags::ACK,
            window: 0,
            urgent: 0,
            options,
        }
    }

    #[test]
    fn reads_a_segment_byte_by_byte() {
        // A SYN as Linux sends it, with 4 bytes of payload.
        let bytes = [
            0x30, 0x39, 0x00, 0x50, 0x01, 0x02, 0x03, 0x04, 0, 0, 0, 0, 0xa0, 0x02, 0xfa, 0xf0, 0,
            0, 0, 0, 2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7, 1, 2, 3, 4,
        ];
        let (header, len) = Header::parse(&bytes).unwrap();
        assert_eq!(len, 40);
        assert_eq!((header.src_port, header.dst_port), (12345, 80));
        assert_eq!(header.seq, SeqNumber(0x0102_0304));
        assert_eq!(header.flags, Flags::SYN);
        assert_eq!(header.window, 0xfaf0);
        let timestamp = Some(Timestamp { value: 7, echo: 0 });
        assert_eq!(
            header.syn_options(),
            SynOptions { mss: Some(1460), window_scale: Some(7), sack_permitted: true, timestamp }
        );
        assert_eq!(header.timestamp(), timestamp);
        assert_eq!(Options::syn(1460, Some(7), true, timestamp).as_slice(), header.options);
    }

    #[test]
    fn bad_lengths_are_refused() {
        assert_eq!(Header::parse(&[0; 19]).unwrap_err(), ParseError::Truncated);
        let mut bytes = [0u8; 24];
        bytes[12] = 4 << 4;
        assert_eq!(Header::parse(&bytes).unwrap_err(), ParseError::BadDataOffset);
        bytes[12] = 7 << 4;
        assert_eq!(Header::parse(&bytes).unwrap_err(), ParseError::BadDataOffset);
        bytes[12] = 6 << 4;
        assert_eq!(Header::parse(&bytes).unwrap().1, 24);
    }

    #[test]
    fn malformed_options_end_the_list() {
        // A length of 1 would never move on; what stands before it counts, what follows does not.
        let options = [2, 4, 1, 0, 3, 1, 4, 2];
        let found = with_options(&options).syn_options();
        assert_eq!(found, SynOptions { mss: Some(256), ..Default::default() });
        // A length beyond the end.
        assert_eq!(with_options(&[4, 2, 8, 10, 0, 0]).syn_options().timestamp, None);
        // The end of the list.
        assert_eq!(with_options(&[0, 2, 4, 1, 0]).syn_options().mss, None);
        // A kind with no length, after a nop.
        assert_eq!(with_options(&[1, 1, 1, 8]).timestamp(), None);
    }

    #[test]
    fn window_scale_is_clamped() {
        assert_eq!(with_options(&[3, 3, 200, 0]).syn_options().window_scale, Some(14));
    }

    #[test]
    fn timestamps_are_found_anywhere() {
        let stamp = Timestamp { value: 0x0102_0304, echo: 0x0506_0708 };
        let odd = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
        assert_eq!(with_options(&odd).timestamp(), Some(stamp));
        assert_eq!(with_options(&odd).lone_timestamp(), None);
        let usual = Options::established(Some(stamp), &SackBlocks::EMPTY);
        assert_eq!(with_options(usual.as_slice()).timestamp(), Some(stamp));
        assert_eq!(with_options(usual.as_slice()).lone_timestamp(), Some(stamp));
    }

    #[test]
    fn blocks_that_do_not_fit_are_left_out() {
        let mut blocks = SackBlocks::EMPTY;
        for at in 0..4 {
            assert!(blocks.push(SeqNumber(at * 10), SeqNumber(at * 10 + 5)));
        }
        assert!(!blocks.push(SeqNumber(90), SeqNumber(95)));
        let alone = Options::established(None, &blocks);
        assert_eq!(alone.len(), 36);
        assert_eq!(with_options(alone.as_slice()).sack_blocks(), blocks);
        let both = Options::established(Some(Timestamp::default()), &blocks);
        assert_eq!(both.len(), 40);
        assert_eq!(with_options(both.as_slice()).sack_blocks().as_slice(), &blocks.as_slice()[..3]);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let (low, high) = (SeqNumber(u32::MAX - 1), SeqNumber(3));
        assert!(low.lt(high) && high.gt(low) && low.le(low) && low.ge(low));
        assert_eq!(high.distance(low), 5);
        assert_eq!(low.distance(high), -5);
        assert_eq!(low + 5, high);
        assert_eq!(low.max(high), high);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok((header, len)) = Header::parse(&bytes) {
                prop_assert!(len <= bytes.len());
                header.timestamp();
                header.syn_options();
                header.sack_blocks();
            }
        }

        #[test]
        fn any_options_are_walked_to_an_end(options in prop::collection::vec(0u8..12, 0..40)) {
            let header = with_options(&options);
            header.timestamp();
            prop_assert!(header.syn_options().window_scale.unwrap_or(0) <= MAX_WINDOW_SCALE);
            prop_assert!(header.sack_blocks().len() <= 4);
        }

        #[test]
        fn what_is_emitted_parses_back(
            ports in any::<(u16, u16)>(), seq in any::<u32>(), ack in any::<u32>(),
            flags in any::<u8>(), window in any::<u16>(), urgent in any::<u16>(),
            stamp in prop::option::of(any::<(u32, u32)>()),
            blocks in prop::collection::vec(any::<(u32, u32)>(), 0..4),
        ) {
            let timestamp = stamp.map(|(value, echo)| Timestamp { value, echo });
            let mut sack = SackBlocks::EMPTY;
            for (start, end) in blocks { sack.push(SeqNumber(start), SeqNumber(end)); }
            let options = Options::established(timestamp, &sack);
            let mut buf = [0xffu8; 64];
            let len = emit(&mut buf, ports.0, ports.1, SeqNumber(seq), SeqNumber(ack),
                Flags::from_bits_retain(flags), window, urgent, options.as_slice());
            let (header, parsed_len) = Header::parse(&buf[..len]).unwrap();
            prop_assert_eq!(parsed_len, len);
            prop_assert_eq!((header.src_port, header.dst_port), ports);
            prop_assert_eq!((header.seq.0, header.ack.0), (seq, ack));
            prop_assert_eq!((header.flags.bits(), header.window, header.urgent), (flags, window, urgent));
            prop_assert_eq!(header.timestamp(), timestamp);
            prop_assert_eq!(header.sack_blocks(), sack);
            prop_assert_eq!(&buf[16..18], &[0, 0]);
        }
    }
}
