//! The time of day, as HTTP writes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream_timer::Instant;

/// Length in bytes of `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) const DATE_BYTES: usize = 29;

/// The last second of the year 9999, the last that HTTP can write.
const LAST_S: u64 = 253_402_300_799;

/// A date that HTTP can write: whole seconds, neither before 1970 nor after 9999.
pub(crate) fn clamp(time: SystemTime) -> SystemTime {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(LAST_S));
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The text of a date.
pub(crate) fn text(time: SystemTime) -> [u8; DATE_BYTES] {
    let mut out = [b' '; DATE_BYTES];
    let text = httpdate::fmt_http_date(clamp(time));
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    out
}

/// Reads a date in any of the three forms of RFC 9110 section 5.6.7.
pub(crate) fn parse(field: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(field).ok()?).ok()
}

/// The `Date` of this second, read from the system once a second.
pub(crate) struct Today {
    source: fn() -> SystemTime,
    next: Instant,
    /// Counts the seconds, so that what was written in an earlier one is recognized.
    pub tick: u64,
    pub text: [u8; DATE_BYTES],
    pub now: SystemTime,
}

impl Today {
    pub fn new(source: fn() -> SystemTime, now: Instant) -> Self {
        let mut today =
            Self { source, next: now, tick: 0, text: [b' '; DATE_BYTES], now: UNIX_EPOCH };
        today.read(now);
        today
    }

    /// Brings it up to date.
    #[inline]
    pub fn update(&mut self, now: Instant) {
        if now >= self.next {
            self.read(now);
        }
    }

    #[cold]
    fn read(&mut self, now: Instant) {
        let wall = (self.source)();
        let part_ns = wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        self.next = now.plus_nanos(1_000_000_000 - u64::from(part_ns));
        self.tick += 1;
        self.now = clamp(wall);
        self.text = text(wall);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_beyond_what_http_can_write_are_clamped() {
        assert_eq!(&text(UNIX_EPOCH), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(text(UNIX_EPOCH - Duration::from_secs(1)), text(UNIX_EPOCH));
        let far = UNIX_EPOCH + Duration::from_secs(LAST_S * 2);
        assert_eq!(&text(far), b"Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(parse(&text(far)), Some(clamp(far)));
        assert_eq!(parse(b"\xff"), None);
    }

    #[test]
    fn the_date_moves_on_with_the_second() {
        // A quarter past the second: the next one begins 750 ms later.
        let source = || UNIX_EPOCH + Duration::from_millis(784_111_777_250);
        let mut today = Today::new(source, Instant::ZERO);
        assert_eq!(&today.text, b"Sun, 06 Nov 1994 08:49:37 GMT");
        today.update(Instant::from_micros(749_999));
        assert_eq!(today.tick, 1);
        today.update(Instant::from_micros(750_000));
        assert_eq!(today.tick, 2);
    }
}
