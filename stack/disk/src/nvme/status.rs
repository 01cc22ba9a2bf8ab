//! What a command's completion says (NVMe Base Specification 2.0, 3.3.3.2.1).

use std::fmt;

/// A status field: type, code and the bits beside them. It comes from the device and may be any.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    /// All went well.
    pub const SUCCESS: Self = Self(0);

    /// The status of a type and a code; `final_` sets "do not retry".
    pub const fn new(kind: u8, code: u8, final_: bool) -> Self {
        Self(code as u16 | (kind as u16 & 7) << 8 | (final_ as u16) << 14)
    }

    /// The 15 bits above the phase bit.
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The 15 bits above the phase bit.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether the command succeeded.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Status code type: 0 generic, 1 of the command, 2 media and data, 3 path, 7 the vendor's.
    pub const fn kind(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Status code.
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Whether the same command may succeed later: "do not retry" is not set.
    pub const fn may_retry(self) -> bool {
        self.0 >> 14 == 0
    }

    /// Whether the medium failed, or the data on it.
    pub const fn is_media(self) -> bool {
        self.kind() == 2
    }

    /// What it means, where we know it.
    pub const fn meaning(self) -> &'static str {
        match (self.kind(), self.code()) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "power loss",
            (0, 0x06) => "internal error",
            (0, 0x07) => "aborted on request",
            (0, 0x08) => "aborted with its queue",
            (0, 0x0b) => "invalid namespace",
            (0, 0x13) => "invalid page offset",
            (0, 0x80) => "beyond the end of the namespace",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "namespace not ready",
            (0, _) => "generic error",
            (1, _) => "error of the command",
            (2, 0x81) => "unrecovered read error",
            (2, 0x82..=0x84) => "end-to-end check failed",
            (2, 0x86) => "access denied",
            (2, 0x87) => "deallocated or unwritten block",
            (2, _) => "media error",
            (3, _) => "path error",
            (7, _) => "error of the vendor's own",
            _ => "reserved",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:02x}h, {}", self.kind(), self.code(), self.meaning())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self}{})", if self.may_retry() { "" } else { ", final" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        // Unrecovered read error with "do not retry" and "more", as it lies in a completion.
        let status = Status::from_bits(0x0281 | 1 << 13 | 1 << 14);
        assert_eq!((status.kind(), status.code()), (2, 0x81));
        assert!(status.is_media() && !status.may_retry() && !status.is_success());
        assert_eq!(status.to_string(), "2/81h, unrecovered read error");
        assert!(Status::from_bits(1 << 13).is_success(), "more information is no error");
        assert_eq!(Status::new(0, 0x80, true).bits(), 0x4080);
        assert_eq!(Status::from_bits(u16::MAX).meaning(), "error of the vendor's own");
    }
}
