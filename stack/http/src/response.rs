//! Heads of responses, written into a buffer that is used again and again.

use std::io::Write;

use crate::date::DATE_BYTES;

/// A status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub u16);

impl Status {
    pub const OK: Self = Self(200);
    pub const PARTIAL_CONTENT: Self = Self(206);
    pub const MOVED_PERMANENTLY: Self = Self(301);
    pub const NOT_MODIFIED: Self = Self(304);
    pub const BAD_REQUEST: Self = Self(400);
    pub const FORBIDDEN: Self = Self(403);
    pub const NOT_FOUND: Self = Self(404);
    pub const METHOD_NOT_ALLOWED: Self = Self(405);
    pub const REQUEST_TIMEOUT: Self = Self(408);
    pub const PRECONDITION_FAILED: Self = Self(412);
    pub const CONTENT_TOO_LARGE: Self = Self(413);
    pub const URI_TOO_LONG: Self = Self(414);
    pub const RANGE_NOT_SATISFIABLE: Self = Self(416);
    pub const FIELDS_TOO_LARGE: Self = Self(431);
    pub const INTERNAL_ERROR: Self = Self(500);
    pub const NOT_IMPLEMENTED: Self = Self(501);
    pub const UNAVAILABLE: Self = Self(503);
    pub const VERSION_NOT_SUPPORTED: Self = Self(505);

    pub fn reason(self) -> &'static str {
        match self.0 {
            200 => "OK",
            206 => "Partial Content",
            301 => "Moved Permanently",
            304 => "Not Modified",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            412 => "Precondition Failed",
            413 => "Content Too Large",
            414 => "URI Too Long",
            416 => "Range Not Satisfiable",
            431 => "Request Header Fields Too Large",
            500 => "Internal Server Error",
            501 => "Not Implemented",
            503 => "Service Unavailable",
            505 => "HTTP Version Not Supported",
            _ => "Unknown",
        }
    }
}

/// What is said of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persist {
    /// Nothing: it stays open, as HTTP/1.1 has it.
    Silent,
    /// It stays open although the client speaks HTTP/1.0.
    KeepAlive,
    /// It will be closed.
    Close,
}

/// Starts a head in `out`, which is emptied.
pub(crate) fn begin(out: &mut Vec<u8>, status: Status, date: &[u8; DATE_BYTES], persist: Persist) {
    out.clear();
    // Writing into a vector cannot fail.
    let _ =
        write!(out, "HTTP/1.1 {} {}\r\nServer: millstream\r\nDate: ", status.0, status.reason());
    out.extend_from_slice(date);
    out.extend_from_slice(match persist {
        Persist::Silent => b"\r\n",
        Persist::KeepAlive => b"\r\nConnection: keep-alive\r\n",
        Persist::Close => b"\r\nConnection: close\r\n",
    });
}

/// Adds a field whose value is text.
pub(crate) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Adds a field whose value is formatted.
pub(crate) fn field_fmt(out: &mut Vec<u8>, name: &str, value: std::fmt::Arguments<'_>) {
    let _ = write!(out, "{name}: {value}\r\n");
}

/// Ends the head of a response that says no more than its status, with a body of one line unless
/// it answers HEAD. Returns the bytes of that body.
pub(crate) fn end_plain(out: &mut Vec<u8>, status: Status, with_body: bool) -> usize {
    let reason = status.reason();
    let len = 3 + 1 + reason.len() + 1;
    let _ = write!(out, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\n\r\n");
    if with_body {
        let _ = writeln!(out, "{} {reason}", status.0);
        len
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_response_is_as_long_as_it_says() {
        let mut out = b"left over".to_vec();
        begin(&mut out, Status::NOT_FOUND, b"Sun, 06 Nov 1994 08:49:37 GMT", Persist::Close);
        let len = end_plain(&mut out, Status::NOT_FOUND, true);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "404 Not Found\n");
        assert_eq!(body.len(), len);
        assert!(head.starts_with("HTTP/1.1 404 Not Found\r\nServer: millstream\r\nDate: Sun, "));
        assert!(head.contains("\r\nConnection: close\r\n"));
        assert!(head.ends_with(&format!("\r\nContent-Length: {len}")));
    }
}
